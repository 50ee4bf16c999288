"""Weights from wherever they lie: a run, a checkpoint, an exported folder, Hugging Face's files, the authors' files.

Nothing is unpickled but tensors and plain values (``torch.load(weights_only=True)``), a Namespace of such values among
them, and what does not fit a model is refused by name and shape.
"""

import argparse
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from motionmae.checkpointing.sharded import load_weights
from motionmae.errors import UserError
from motionmae.models.convert import huggingface, released
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.runs.directory import RunFolder

_WRAPPERS = ("model", "module", "state_dict", "model_state")
_LISTED = 3


@dataclass(frozen=True)
class Weights:
    """A state dict under our names: of ``MotionMAE`` (some of its heads, or none) or of ``Classifier``."""

    state: dict[str, Tensor]
    origin: str
    """Which file or folder they came from."""


def read_weights(source: str | Path) -> Weights:
    """Read weights of any of the kinds that docs/weights.md lists.

    Raises:
        UserError: there are none, they are damaged, or they are of a model that is not known.
    """
    path = resolve_checkpoint(source)
    if (path / "manifest.json").is_file():
        return Weights(load_weights(path), str(path))
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        files = [path / name for name in names if (path / name).is_file()]
        if not files:
            raise UserError(f"{path} holds no weights: give a run folder, a checkpoint, or a folder with {names[0]}")
        path = files[0]
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a run folder, an exported folder, or a file")
    return Weights(_translate(_read_file(path), path), str(path))


def resolve_checkpoint(source: str | Path) -> Path:
    """What ``source`` means now: of a run the folder of its newest checkpoint, of all else the path itself.

    Raises:
        UserError: it is a run that has no checkpoint yet.
    """
    path = Path(source).expanduser()
    if RunFolder(path).config.is_file() and RunFolder(path).checkpoints.is_dir():
        return newest_checkpoint(RunFolder(path)).folder
    return path


def newest_checkpoint(folder: RunFolder, step: int | None = None) -> Checkpoint:
    """A run's checkpoint of ``step``, or its newest; the run folder is only read.

    Raises:
        UserError: there is no such checkpoint.
    """
    complete = CheckpointStore(folder.checkpoints).complete()
    chosen = [checkpoint for checkpoint in complete if step in (None, checkpoint.step)]
    if not chosen:
        there = ", ".join(str(checkpoint.step) for checkpoint in complete) or "none yet"
        wanted = "" if step is None else f" of step {step}"
        raise UserError(f"{folder.checkpoints} has no checkpoint{wanted}: there are {there}")
    return chosen[-1]


def load_encoder(encoder: nn.Module, source: str) -> None:
    """Fill an encoder from the weights at ``source``; their final norm is left out where it has none.

    Raises:
        UserError: they are not there or of another size; it names tensors and shapes.
    """
    weights = read_weights(source)
    inner = {
        name.removeprefix("encoder."): value for name, value in weights.state.items() if name.startswith("encoder.")
    }
    wanted = encoder.state_dict().keys()
    fit(encoder, {name: v for name, v in inner.items() if name in wanted or not name.startswith("norm.")}, weights)


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights: equal for equal bits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fit(module: nn.Module, state: Mapping[str, Tensor], weights: Weights) -> None:
    """Load ``state``, which must have just the tensors of ``module``.

    Raises:
        UserError: naming what is missing, what is too many, and whose shape differs.
    """
    ours = module.state_dict()
    others = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(ours[name].shape)} here"
        for name in ours
        if name in state and state[name].shape != ours[name].shape
    ]
    missing, surplus = [n for n in ours if n not in state], [n for n in state if n not in ours]
    problems = [
        _list(others),
        f"{_list(missing)} missing there" if missing else "",
        f"{_list(surplus)} unknown here" if surplus else "",
    ]
    if any(problems):
        positions = not others and "pos_embed.table" in " ".join(surplus)
        remedy = "set model.pos_embed=learnable" if positions else "set model.* and clip.* alike"
        raise UserError(
            f"{weights.origin} holds weights of another model: {'; '.join(filter(None, problems))} ({remedy}, "
            "or choose other weights)"
        )
    module.load_state_dict(dict(state))


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # VideoMAE's trainer saves its `args` beside the model: a Namespace runs nothing, and its values are checked
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise whatever their bytes lead to
        raise UserError(
            f"{path} cannot be read as weights ({_reason(error)}): give safetensors or a file of tensors"
        ) from error
    while isinstance(content, dict) and (inner := next((content[k] for k in _WRAPPERS if k in content), None)):
        content = inner
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no state dict but a {type(content).__name__}: give weights")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module.").removeprefix("backbone."): value for name, value in tensors.items()}


def _reason(error: Exception) -> str:
    """Why a file is not read, in a clause. Not as torch words a refusal: it advises to unpickle all the same."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {refused[1]}, which is neither a tensor nor a plain value"
    if isinstance(error, (OSError, SafetensorError, RuntimeError)):
        return str(error).partition("\n")[0]
    return "damaged, or not written by torch.save"


def _translate(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Our names, whosever they are."""
    try:
        if "encoder.project.weight" in state:
            return state
        if "classifier.weight" in state:
            return huggingface.classifier_from_huggingface(state)
        if "decoder.head.weight" in state and "mask_token" in state and "encoder_to_decoder.weight" in state:
            if "encoder.patch_embed.proj.weight" in state:
                return released.from_videomae(state)
            return huggingface.pretraining_from_huggingface(state)
        if any("embeddings.patch_embeddings" in name for name in state):
            inner = {name.removeprefix("videomae."): value for name, value in state.items()}
            return {f"encoder.{name}": value for name, value in huggingface.encoder_from_huggingface(inner).items()}
        if released.is_mae_st(state):
            return released.from_mae_st(state)
        if released.is_videomae(state):
            return released.from_videomae(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    raise UserError(
        f"{path} holds weights of a model that is not known here (such as {_list(sorted(state)) or 'none at all'}): "
        "give MotionMAE's, VideoMAE's, MAE-ST's or Hugging Face's VideoMAE"
    )
