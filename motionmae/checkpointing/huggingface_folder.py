"""A folder of transformers: its weights, also in several files, and the preprocessing that they expect."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, JsonModel, Schema, load_json
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.checkpoint_manifest import PlainName

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_INDICES = tuple(f"{name}.index.json" for name in WEIGHTS)


class _Index(JsonModel, extra="ignore"):
    weight_map: dict[str, PlainName]


def _positive(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(value > 0 for value in values):
        raise ValueError("it must be positive")
    return values


_Colours = tuple[float, float, float]


class _Preprocessor(JsonModel, extra="ignore"):
    """Keys of VideoMAEImageProcessor that change pixel values, with its defaults."""

    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0)] = 1 / 255
    do_normalize: bool = True
    image_mean: _Colours = PIXEL_MEAN
    image_std: Annotated[_Colours, AfterValidator(_positive)] = PIXEL_STD


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a folder's weights; none if it has no weights.

    Raises:
        UserError: an index of several files is damaged.
    """
    if found := [folder / name for name in WEIGHTS if (folder / name).is_file()]:
        return found[:1]
    for name in _INDICES:
        if (folder / name).is_file():
            index = read_json_file(folder / name, _Index)
            return [folder / part for part in sorted(set(index.weight_map.values()))]
    return []


def read_json_file(path: Path, schema: type[Schema]) -> Schema:
    """Read a JSON file of a folder of weights. Raise UserError, which names the file, if it does not fit ``schema``."""
    try:
        return load_json(path, schema)
    except (InvalidJsonError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}): restore it from where the weights came from") from error


def adapt_pixels(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Fold the folder's normalisation into the projection if it is not ImageNet's, which our encoder applies.

    Args:
        state: weights with our names.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return state
    theirs = read_json_file(path, _Preprocessor)
    scale = theirs.rescale_factor if theirs.do_rescale else 1.0
    mean, std = (torch.tensor(values if theirs.do_normalize else (neutral,) * 3, dtype=torch.float64)
                 for values, neutral in ((theirs.image_mean, 0.0), (theirs.image_std, 1.0)))  # fmt: skip
    # theirs = (pixel * scale - mean) / std, ours = (pixel / 255 - PIXEL_MEAN) / PIXEL_STD
    our_mean, our_std = (torch.tensor(values, dtype=torch.float64) for values in (PIXEL_MEAN, PIXEL_STD))
    gain = our_std * 255 * scale / std
    shift = (our_mean * 255 * scale - mean) / std
    if torch.allclose(gain, torch.ones(()).double(), atol=1e-6) and shift.abs().max() < 1e-6:
        return state
    return fold_pixels(state, gain, shift)


def fold_pixels(state: dict[str, Tensor], gain: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Change the projection so that it takes our pixels x instead of x * gain + shift; both are (3,), by colour."""
    weight, bias = state["encoder.project.weight"], state["encoder.project.bias"]
    kernel = weight.double().unflatten(1, (-1, 3))  # colours vary fastest
    return {
        **state,
        "encoder.project.weight": (kernel * gain).flatten(1).to(weight.dtype),
        "encoder.project.bias": (bias.double() + (kernel * shift).sum((1, 2))).to(bias.dtype),
    }


def read_folder(folder: Path, read_file: Callable[[Path], dict[str, Any]]) -> tuple[dict[str, Any], Path] | None:
    """Read all files of a folder's weights with ``read_file``; return the tensors and the first file, or None."""
    files = weight_files(folder)
    if not files:
        return None
    merged: dict[str, Any] = {}
    for path in files:
        merged |= read_file(path)
    return merged, files[0]
