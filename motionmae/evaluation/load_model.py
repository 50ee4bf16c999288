"""Load a model, its config and its classes from any weights, without writing to their folder.

:func:`load_model` is the one way from a path to a model for every evaluation, for `motionmae.load` and for `export`.
Missing or damaged weights raise UserError. Files are read as safetensors or with ``torch.load(weights_only=True)``. Of
a config that comes with weights, and not from a run folder, only what describes the model is used: it cannot name
folders, URLs or variables of the environment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import Tensor, nn

from motionmae.checkpointing.huggingface_folder import CONFIG, read_json_file
from motionmae.checkpointing.load_weights import Weights, load_state, load_state_dict_strict
from motionmae.config import Config, load_config
from motionmae.config.refusals import describe_refusal
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.errors import UserError
from motionmae.evaluation.export_folder import FACTS
from motionmae.evaluation.weights_source import Kind, WeightsSource, find_weights
from motionmae.json_text import JsonModel
from motionmae.models.classifier import Classifier, build_classifier
from motionmae.models.cubes import cut_patches
from motionmae.models.infer_config import HuggingFaceConfig, check_pooling, config_from_huggingface, config_from_weights
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.models.vit import Encoder
from motionmae.runs.checkpoint_manifest import Checkpoint as CheckpointFolder
from motionmae.runs.checkpoint_manifest import Count, read_manifest
from motionmae.runs.directory import RunFolder
from motionmae.training.finetune import load_frozen

_HEAD_NORM_EPS = 1e-5  # torch's default, which transformers has in the norms of its classifier and its decoder


class _Progress(JsonModel, extra="ignore"):
    step: Count


class _Task(JsonModel, extra="ignore"):
    class_names: tuple[str, ...] = ()
    frozen: str = ""


class _SavedState(JsonModel, extra="ignore"):
    """Parts of a checkpoint's state.json that an evaluation reads."""

    trainer: _Progress
    config: dict[str, Any] = Field(default_factory=dict)
    task: _Task = _Task()


class _ExportFacts(JsonModel, extra="ignore"):
    """Parts of an export's motionmae.json that an evaluation reads."""

    step: Count | None = None
    class_names: tuple[str, ...] = ()
    commit: str = ""
    config: dict[str, Any]


@dataclass(frozen=True)
class _Loaded:
    config: Config
    source: WeightsSource
    step: int | None  # None if the weights do not say
    commit: str = field(default="", kw_only=True)  # revision of the code that trained an export

    @property
    def title(self) -> str:
        """Name and step, for headings."""
        name = self.config.name or self.source.name
        return name if self.step is None else f"{name}, step {self.step}"


@dataclass(frozen=True)
class Pretrained(_Loaded):
    """Pre-training model with its decoders, in evaluation mode on the CPU."""

    model: MotionMAE

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder


@dataclass(frozen=True)
class Finetuned(_Loaded):
    """Classifier, in evaluation mode on the CPU."""

    model: Classifier
    class_names: tuple[str, ...]  # in the order of the logits

    def with_views(self, clips: int, crops: int) -> "Finetuned":
        """Return the same model with other views of a video."""
        return replace(self, config=self.config.updated({"test.clips": clips, "test.crops": crops}))

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder


@dataclass(frozen=True)
class EncoderOnly(_Loaded):
    """Encoder from weights without a head and without decoders, in evaluation mode on the CPU."""

    model: Encoder

    @property
    def encoder(self) -> Encoder:
        return self.model


LoadedModel = Pretrained | Finetuned | EncoderOnly


def choose_weights(
    rank: DistributedContext,
    name: str | Path,
    step: int | str | None = None,
    settings: Sequence[str] = (),
    classes: Path | None = None,
) -> WeightsSource:
    """Return the weights that :func:`find_weights` finds on rank 0. All ranks must call this.

    If each rank searched by itself, a save in between could give ranks different weights.
    """
    return run_on_rank_zero(rank, lambda: find_weights(name, step, settings, classes))


def load_model(source: WeightsSource | str | Path, step: int | str | None = None) -> LoadedModel:
    """Load the model at ``source``, which is what :func:`find_weights` takes or returns."""
    if not isinstance(source, WeightsSource):
        source = find_weights(source, step)
    if source.kind is Kind.CHECKPOINT:
        return _load_checkpoint(source)
    if source.kind is Kind.EXPORT:
        weights, facts = load_state(source.path), read_json_file(source.path / FACTS, _ExportFacts)
        config = _model_config(facts.config, source.path / FACTS)
        return _fill(source, config, weights, facts.class_names, facts.step, commit=facts.commit)
    theirs = None
    if source.kind is Kind.HUGGINGFACE:
        theirs = read_json_file(source.path / CONFIG, HuggingFaceConfig)
        theirs = theirs if theirs.model_type == "videomae" else None
    try:
        if theirs:
            check_pooling(theirs)
        weights = load_state(source.path)
        config = (
            config_from_huggingface(theirs, weights.state)
            if theirs
            else config_from_weights(weights.state, weights.arguments)
        )
    except UserError as error:
        named = str(error).startswith(str(source.path))
        raise error if named else UserError(f"{source.path}: {error}") from error
    classes = len(weights.state["head.weight"]) if "head.weight" in weights.state else 0
    loaded = _fill(source, config, weights, _class_names(theirs, classes), None)
    if theirs:
        _set_norm_eps(loaded, theirs.layer_norm_eps)
    return loaded


def load_pretrained(source: WeightsSource | str | Path, step: int | str | None = None) -> Pretrained:
    """Load a pre-training model. Raise UserError if the weights are others."""
    loaded = load_model(source, step)
    if not isinstance(loaded, Pretrained):
        kind = "a classifier" if isinstance(loaded, Finetuned) else "an encoder without decoders"
        raise UserError(
            f"{loaded.source.run or loaded.source.path} holds {kind} (task={loaded.config.task}), and this needs "
            "decoders: give weights of a pre-training (task=pretrain)"
        )
    return loaded


def load_finetuned(source: WeightsSource | str | Path, step: int | str | None = None) -> Finetuned:
    """Load a classifier. Raise UserError if the weights are others."""
    loaded = load_model(source, step)
    if not isinstance(loaded, Finetuned):
        raise UserError(
            f"{loaded.source.run or loaded.source.path} holds no classifier (task={loaded.config.task}): give weights "
            "of a fine-tuning (task=finetune); `motionmae features` and `motionmae knn` need none"
        )
    return loaded


class Embedding(nn.Module):
    """Model that maps clips (B, T, H, W, 3) to features (B, width), the mean of the encoder's tokens."""

    def __init__(self, encoder: Encoder, cube_size: int):
        super().__init__()
        self.encoder, self.cube_size = encoder, cube_size

    def forward(self, clips: Tensor) -> Tensor:
        return self.encoder(cut_patches(clips, self.cube_size)).mean(1)


def load_embedding(source: WeightsSource | str | Path, step: int | str | None = None) -> tuple[Embedding, LoadedModel]:
    """Load the encoder of any weights as an :class:`Embedding`; return it with all that was loaded."""
    loaded = load_model(source, step)
    return Embedding(loaded.encoder, loaded.config.clip.cube_size), loaded


def _load_checkpoint(source: WeightsSource) -> LoadedModel:
    checkpoint = read_manifest(source.path)
    if not isinstance(checkpoint, CheckpointFolder):
        raise UserError(f"{source.path} is not a valid checkpoint ({checkpoint}): give another one")
    saved = checkpoint.state(_SavedState)
    path = RunFolder(source.run).config if source.run else None
    config = load_config(str(path)) if path else _model_config(saved.config, source.path)
    weights = load_state(source.path)
    if config.task == "finetune" and config.finetune.frozen:
        if source.run is None:
            raise UserError(
                f"{source.path} is a probe's checkpoint, whose encoder lies in its run: give the run folder"
            )
        model = build_classifier(config, len(saved.task.class_names))
        load_frozen(model.encoder, RunFolder(source.run), config.finetune.init, saved.task.model_dump())
        encoder = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
        weights = Weights({**weights.state, **encoder}, weights.origin)
    return _fill(source, config, weights, saved.task.class_names, saved.trainer.step)


def _model_config(tree: dict[str, Any], origin: Path) -> Config:
    """Return the config of a model from a stranger's ``tree``: only the sections that describe the model."""
    parts: dict[str, Any] = {
        key: tree[key] for key in ("name", "seed", "task", "clip", "model", "mask", "target") if key in tree
    }
    for section, keys in (
        ("finetune", ("mode", "init")),
        ("test", ("clips", "crops")),
        ("data", ("sampling",)),
        ("engine", ("precision",)),
    ):
        found = tree.get(section)
        parts[section] = {key: found[key] for key in keys if key in found} if isinstance(found, dict) else {}
    try:
        return Config.model_validate(parts)
    except ValidationError as error:
        raise UserError(
            f"{origin} describes no model of this version: {describe_refusal(error, Config, parts)}"
        ) from error


def _class_names(theirs: HuggingFaceConfig | None, classes: int) -> tuple[str, ...]:
    """Return the names in config.json, or `class 0`, `class 1`, ... if it does not name every class."""
    names = theirs.id2label if theirs else {}
    if len(names) == classes and all(str(number) in names for number in range(classes)):
        return tuple(names[str(number)] for number in range(classes))
    return tuple(f"class {number}" for number in range(classes))


def _fill(
    source: WeightsSource, config: Config, weights: Weights, names: tuple[str, ...], step: int | None, commit: str = ""
) -> LoadedModel:
    """Build the model of ``config``, changed by the source's settings, and load ``weights``."""
    config, names = config.updated(source.settings), source.class_names or names
    state, origin = dict(weights.state), weights.origin
    _check_extent(config, state, origin)
    if config.task == "finetune":
        if len(names) != len(state.get("head.bias", ())):
            raise UserError(f"{origin} has {len(state.get('head.bias', ()))} classes, and {len(names)} are named")
        classifier = build_classifier(config, len(names))
        load_state_dict_strict(classifier, state, origin)
        return Finetuned(config, source, step, classifier.eval(), names, commit=commit)
    if any(name.startswith("decoders.") for name in state):
        model = build_motionmae(config)
        if "encoder.norm.weight" not in state:  # transformers with use_mean_pooling=True
            model.encoder.norm = nn.Identity()
        load_state_dict_strict(model, state, origin)
        return Pretrained(config, source, step, model.eval(), commit=commit)
    encoder = Encoder(config.clip, config.model, final_norm="encoder.norm.weight" in state)
    inner = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    load_state_dict_strict(encoder, inner, origin)
    return EncoderOnly(config, source, step, encoder.eval(), commit=commit)


def _check_extent(config: Config, state: dict[str, Tensor], origin: str) -> None:
    """Raise UserError before a model is built that is much larger than its weights, as a hostile config can ask."""
    size, blocks = config.model.dimensions, "encoder.blocks."
    depth = len({name.removeprefix(blocks).partition(".")[0] for name in state if name.startswith(blocks)})
    found = (tuple(state["encoder.project.weight"].shape), depth)
    wanted = ((size.width, config.clip.cube_pixels), size.depth)
    if found != wanted or config.clip.cubes * size.width > 1 << 28:
        raise UserError(
            f"{origin} holds an encoder of {depth} blocks with a projection {found[0]}, and its config describes "
            f"{wanted[1]} with {wanted[0]} for {config.clip.cubes} cubes: give weights with their own config"
        )


def _set_norm_eps(loaded: LoadedModel, eps: float) -> None:
    """Give every LayerNorm the epsilon that transformers uses for these weights."""
    for name, part in loaded.model.named_modules():
        if isinstance(part, nn.LayerNorm):
            inner = isinstance(loaded, EncoderOnly) or "blocks." in name or name.startswith("encoder.")
            part.eps = eps if inner else _HEAD_NORM_EPS
