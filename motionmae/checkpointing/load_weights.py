"""Read weights from a run, a checkpoint, an exported folder, or files of Hugging Face or the papers' authors.

Files are unpickled with ``torch.load(weights_only=True)``: only tensors, plain values, and a Namespace of plain values.
"""

import argparse
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from motionmae.checkpointing.huggingface_folder import WEIGHTS, adapt_pixels, read_folder
from motionmae.errors import UserError
from motionmae.models import convert
from motionmae.runs.best_checkpoint import best_in
from motionmae.runs.checkpoint_manifest import Checkpoint, defect_of, read_manifest
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder

_WRAPPERS = ("model", "module", "state_dict", "model_state")
_MOST_WRAPPERS = 4  # dictionaries around a state dict; a hostile one can hold itself
_INNER_NAMES = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of tensor names, at any depth, that torch.compile, FSDP and activation checkpointing add."""
_OUTER_NAMES = re.compile(r"^(?:(?:module|model|net|backbone)\.)+")
"""Beginnings of tensor names from DDP and DeepSpeed (module), Lightning (model, net) and mmaction2 (backbone)."""
_NAMES_SHOWN = 3
BEST = "best"
"""Name that stands for the step of a run's best checkpoint by validation."""


@dataclass(frozen=True)
class Weights:
    """State dict, with this package's names, of a ``Classifier``, or of a ``MotionMAE`` with or without heads."""

    state: dict[str, Tensor]
    origin: str  # file or folder that was read
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the trainer that wrote a file of VideoMAE, if the file holds them."""


def load_state(source: str | Path) -> Weights:
    """Load weights on the CPU from any source that docs/use/weights.md lists.

    Raises:
        UserError: there are no weights, the weights are damaged, or the model is unknown.
    """
    path = resolve_checkpoint(source)
    if (path / "manifest.json").is_file():
        return Weights(_read_checkpoint(path), str(path))
    if path.is_dir():
        found = read_folder(path, lambda file: _tensors_of(_read_file(file), file))
        if found is None:
            raise UserError(f"{path} holds no weights: give a run folder, a checkpoint, or a folder with {WEIGHTS[0]}")
        tensors, file = found
        return Weights(adapt_pixels(_translate(tensors, file), path), str(file))
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a run folder, an exported folder, or a file")
    content = _read_file(path)
    return Weights(_translate(_tensors_of(content, path), path), str(path), _arguments_of(content))


def resolve_checkpoint(source: str | Path) -> Path:
    """Return the newest checkpoint of a run, or ``source`` itself if it is not a run folder."""
    path = Path(source).expanduser()
    if RunFolder(path).config.is_file() and RunFolder(path).checkpoints.is_dir():
        return newest_checkpoint(RunFolder(path)).folder
    return path


def newest_checkpoint(folder: RunFolder, step: int | str | None = None) -> Checkpoint:
    """Return a run's newest checkpoint, or its checkpoint of ``step``; raise a UserError if there is none.

    The step ``best`` is that of the best checkpoint by validation.
    """
    if step == BEST:
        if (best := best_in(CheckpointStore(folder.checkpoints))) is None:
            raise UserError(
                f"{folder.path} has no best checkpoint, which training with validation.shards keeps: "
                "give the step of another checkpoint (`motionmae checkpoints RUN`)"
            )
        step = best.step
    try:
        found_all = CheckpointStore(folder.checkpoints).newest_first()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder.checkpoints} cannot be read ({reason}): check its permissions") from error
    complete = [found for _, found in reversed(found_all) if isinstance(found, Checkpoint)]
    chosen = [checkpoint for checkpoint in complete if step in (None, checkpoint.step)]
    if not chosen:
        steps = ", ".join(str(checkpoint.step) for checkpoint in complete) or "none yet"
        wanted = "" if step is None else f" of step {step}"
        broken = [f"{path.name}: {found}" for path, found in found_all if not isinstance(found, Checkpoint)]
        skipped = f" (skipped {broken[0]})" if broken else ""
        raise UserError(
            f"{folder.checkpoints} has no checkpoint{wanted}{skipped}: choose from the saved steps ({steps})"
        )
    return chosen[-1]


def load_encoder(encoder: nn.Module, source: str) -> None:
    """Load an encoder from the weights at ``source``, without their final norm if the encoder has none.

    Raises:
        UserError: there are no weights, or the encoder has different tensors or shapes.
    """
    weights = load_state(source)
    state = {name.removeprefix("encoder."): v for name, v in weights.state.items() if name.startswith("encoder.")}
    expected = encoder.state_dict().keys()
    state = {name: value for name, value in state.items() if name in expected or not name.startswith("norm.")}
    load_state_dict_strict(encoder, state, weights.origin)


def load_state_dict_strict(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load ``state`` into ``module``.

    Raises:
        UserError: tensors are missing, unknown, of other shapes, or not finite. The message names them and ``origin``.
    """
    ours = module.state_dict()
    shapes = [
        f"{name} has shape {tuple(state[name].shape)}, the model expects {tuple(ours[name].shape)}"
        for name in ours
        if name in state and state[name].shape != ours[name].shape
    ]
    missing, unexpected = [n for n in ours if n not in state], [n for n in state if n not in ours]
    listed = {"": shapes, "missing ": missing, "unexpected ": unexpected}
    problems = [f"{kind}{_list(names)}" for kind, names in listed.items() if names]
    if problems:
        learnable = not shapes and "pos_embed.table" in " ".join(unexpected)
        remedy = "model.pos_embed=learnable" if learnable else "model.* and clip.* as in the training of the weights"
        raise UserError(
            f"{origin} holds weights of a different model: {'; '.join(problems)} (set {remedy}, or give other weights)"
        )
    try:
        broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
        module.load_state_dict(dict(state))
    except (RuntimeError, NotImplementedError) as error:  # tensors without values, or of a layout that has no copy
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{origin} holds tensors that cannot be loaded ({reason}): give dense tensors") from error
    if broken:
        raise UserError(
            f"{origin} holds NaN or infinite values in {_list(broken)}: give other weights, for example of an earlier "
            "checkpoint, or saved in fp32"
        )


def fingerprint(module: nn.Module) -> str:
    """Hash a module's weights; equal bits give equal hashes."""
    return state_fingerprint(module.state_dict())


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash the tensors of a state dict with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, or their moving average if it has one."""
    try:
        checkpoint = read_manifest(folder)
        reason = defect_of(checkpoint)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror or error}): check that its disk is mounted"
        ) from error
    if reason or not isinstance(checkpoint, Checkpoint):
        raise UserError(f"{folder} is not a valid checkpoint ({reason}): choose another one in {folder.parent}")
    weights: dict[str, Tensor] = {}
    kind = "average-" if any(entry.name.startswith("average-") for entry in checkpoint.files) else "model-"
    for entry in checkpoint.files:
        if entry.name.startswith(kind):
            weights.update(read_tensors(folder / entry.name, entry.tensors))
    return weights


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors of a safetensors file of a checkpoint, or raise a UserError if one is absent."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path} does not fit its manifest ({_reason(error)}): choose another checkpoint") from error


def _read_file(path: Path) -> Any:
    """Return the content of a file of weights, with the dictionaries that trainers save around the state dict."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # VideoMAE's trainer saves its `args`, a Namespace, with the model. A Namespace runs no code when unpickled.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any error
        raise UserError(
            f"{path} cannot be read as weights ({_reason(error)}): give safetensors or a file of tensors"
        ) from error


def _arguments_of(content: Any) -> Mapping[str, Any]:
    arguments = content.get("args") if isinstance(content, dict) else None
    return vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    content = _unwrap(content)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not a state dict: give a file of weights")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return _without_wrappers(tensors, path)


def _without_wrappers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the parts of names that trainers and torch add, from ``model._orig_mod.blocks.0.norm1.weight`` and others.

    Raises:
        UserError: two tensors get one name, because the file holds two models.
    """
    names: dict[str, str] = {}
    for name in tensors:
        bare = _OUTER_NAMES.sub("", _INNER_NAMES.sub("", name))
        if (other := names.setdefault(bare, name)) != name:
            raise UserError(
                f"{path} holds two models, with {other} and {name}: save the state dict of one of them into a file"
            )
    return {bare: tensors[name] for bare, name in names.items()}


def _unwrap(content: Any) -> Any:
    """Return the state dict inside the dictionaries that trainers save around it."""
    for _ in range(_MOST_WRAPPERS):
        wrapper = next((name for name in _WRAPPERS if isinstance(content, dict) and name in content), None)
        if wrapper is None:
            return content
        content = content[wrapper]
    return content


def _reason(error: Exception) -> str:
    """Return why a read failed. Torch's own message is left out: it advises to unpickle without the check."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {refused[1]}, which is neither a tensor nor a plain value"
    if isinstance(error, (OSError, SafetensorError, RuntimeError)):
        return str(error).partition("\n")[0].partition(" In PyTorch ")[0]
    return "damaged, or not written by torch.save"


def _translate(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        if "encoder.project.weight" in state:
            return state
        if "classifier.weight" in state:
            return convert.from_huggingface(state, convert.CLASSIFIER)
        if "decoder.head.weight" in state and "mask_token" in state and "encoder_to_decoder.weight" in state:
            if "encoder.patch_embed.proj.weight" in state:
                return convert.from_videomae(state)
            return convert.from_huggingface(state, convert.PRETRAINING)
        if any("embeddings.patch_embeddings" in name for name in state):
            inner = {name.removeprefix("videomae."): value for name, value in state.items()}
            encoder = convert.from_huggingface(inner, convert.ENCODER)
            return {f"encoder.{name}": value for name, value in encoder.items()}
        if convert.is_mae_st(state):
            return convert.from_mae_st(state)
        if "patch_embed.projection.weight" in state or "cls_head.fc_cls.weight" in state:
            state = convert.from_mmaction(state)
        if convert.is_videomae(state):
            return convert.from_videomae(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (LookupError, RuntimeError, TypeError) as error:  # tensors of other shapes, or only some of the tensors
        reason = f"{error} is absent" if isinstance(error, KeyError) else _reason(error)
        raise UserError(f"{path} holds only a part of a known model ({reason}): give all of its weights") from error
    raise UserError(
        f"{path} holds weights of an unknown model (such as {_list(sorted(state)) or 'none at all'}): "
        "give weights of MotionMAE, VideoMAE, MAE-ST or Hugging Face's VideoMAE"
    )
