"""Initial weights of a pre-training (``pretrain.init``): the encoder, and the decoders that fit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from motionmae.checkpointing.load_weights import Weights, load_state, load_state_dict_strict, state_fingerprint
from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, JsonModel, load_json
from motionmae.models.infer_config import infer_positions
from motionmae.models.motionmae import MotionMAE
from motionmae.runs.checkpoint_manifest import STATE

EXPORT = "motionmae.json"  # beside exported weights


class _Model(JsonModel, extra="ignore"):
    pos_embed: str = "sinusoidal"


class _Config(JsonModel, extra="ignore"):
    model: _Model = _Model()


class _Source(JsonModel, extra="ignore"):
    config: _Config = _Config()


@dataclass(frozen=True)
class InitialWeights:
    """Record of the weights that a run began with, for its events and checkpoints."""

    path: str
    fingerprint: str  # sha256 of the tensors that were read
    loaded: tuple[str, ...]  # parts of the model: encoder, and decoders such as decoders.space
    random: tuple[str, ...]  # parts of the model that keep their random weights
    unused: tuple[str, ...]  # parts of the weights that the model does not have

    def as_row(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def describe(self) -> str:
        text = f"initial weights: {' and '.join(self.loaded)} from {self.path}"
        text += f"; random: {', '.join(self.random)}" if self.random else ""
        return text + (f"; not used: {', '.join(self.unused)}" if self.unused else "")


def load_initial_weights(model: MotionMAE, source: str, config: Config) -> InitialWeights:
    """Load the encoder at ``source``, and each decoder whose tensors all fit, unless ``pretrain.init_decoders`` is off.

    Raises:
        UserError: there are no weights, the encoder differs, or its positions were of another kind.
    """
    weights = load_state(source)
    _check_positions(weights, config)
    parts = _parts(weights.state)
    encoder = dict(parts.get("encoder", {}))
    for name, value in model.encoder.state_dict().items():  # a classifier's encoder has no final norm
        if name.startswith("norm.") and name not in encoder:
            encoder[name] = value
    load_state_dict_strict(model.encoder, encoder, weights.origin)
    loaded = ["encoder"]
    decoders = {f"decoders.{name}": decoder for name, decoder in model.decoders.items()}
    for name, decoder in decoders.items():
        state, ours = parts.get(name, {}), decoder.state_dict()
        fits = state.keys() == ours.keys() and all(value.shape == ours[key].shape for key, value in state.items())
        if fits and config.pretrain.init_decoders:
            load_state_dict_strict(decoder, state, weights.origin)
            loaded.append(name)
    random = tuple(name for name in decoders if name not in loaded)
    unused = tuple(name for name in parts if name not in loaded)
    return InitialWeights(weights.origin, state_fingerprint(weights.state), tuple(loaded), random, unused)


def _parts(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Divide tensors by the part of the model: ``encoder``, ``decoders.NAME``, or the first word of the name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        words = name.split(".")
        length = 2 if words[0] == "decoders" else 1
        parts.setdefault(".".join(words[:length]), {})[".".join(words[length:])] = value
    return parts


def _check_positions(weights: Weights, config: Config) -> None:
    """Raise a UserError if the encoder was trained with other fixed positions, which no shape of a tensor shows."""
    origin, ours = Path(weights.origin), config.model.pos_embed
    files = (origin / STATE, (origin if origin.is_dir() else origin.parent) / EXPORT)
    theirs = infer_positions(weights.state)
    for path in files:
        if path.is_file():
            try:
                theirs = load_json(path, _Source).config.model.pos_embed
            except (OSError, InvalidJsonError) as error:
                raise UserError(f"{path} cannot be read ({error}): give other weights as pretrain.init") from error
            break
    if theirs != ours:
        raise UserError(
            f"{weights.origin} was trained with model.pos_embed={theirs}, not {ours}: set model.pos_embed={theirs}, or "
            "give other weights as pretrain.init"
        )
