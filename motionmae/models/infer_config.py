"""Config of a model from the shapes of its weights, or from Hugging Face's config.json.

Shapes do not tell everything. Sinusoidal position tables are in no file, so frames and size of a clip default to those
of VideoMAE (16 x 224 x 224), unless MAE-ST's learned tables or VideoMAE's own arguments beside the weights say
otherwise. The number of attention heads follows from the width, as in the released models.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from motionmae.config import Config
from motionmae.config.method import SIZES
from motionmae.errors import UserError
from motionmae.json_text import JsonModel

State = Mapping[str, Tensor]

_HEADS = {1280: 16, 1408: 16, 1664: 16}  # released ViT-H, ViT-g and ViT-e; all others have 64 channels a head
_DECODER_HEADS = {640: 8}  # VideoMAE's ViT-H
_MLP_RATIO = 4
_MOST = 1 << 16  # a hostile config.json must not make the model larger than its weights

Count = Annotated[int, Field(ge=1, le=_MOST)]
Side = Count | tuple[Count, Count] | list[Count]


class HuggingFaceConfig(JsonModel, extra="ignore"):
    """Keys of transformers' VideoMAEConfig that determine the model, with its defaults."""

    model_type: str = ""
    architectures: list[str] = Field(default_factory=list)
    image_size: Side = 224
    patch_size: Side = 16
    num_channels: Count = 3
    num_frames: Count = 16
    tubelet_size: Count = 2
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: Annotated[float, Field(ge=0, le=1)] = 1e-12
    qv_bias: bool = True
    qkv_bias: bool = True
    use_mean_pooling: bool = True
    decoder_hidden_size: Count = 384
    decoder_num_hidden_layers: Count = 4
    decoder_num_attention_heads: Count = 6
    decoder_intermediate_size: Count = 1536
    norm_pix_loss: bool = True
    id2label: dict[str, str] = Field(default_factory=dict)


def check_pooling(theirs: HuggingFaceConfig) -> None:
    """Raise UserError if a classifier takes the first token instead of the mean."""
    if not theirs.use_mean_pooling and "VideoMAEForVideoClassification" in theirs.architectures:
        raise UserError(
            "config.json has use_mean_pooling=False, and classifiers here pool by the mean: give one fine-tuned so"
        )


def config_from_huggingface(theirs: HuggingFaceConfig, state: State) -> Config:
    """Return the config of a VideoMAE of transformers. Raise UserError, naming the key, if it is no plain VideoMAE."""
    pretraining = "decoders.space.mask_token" in state
    wanted: dict[str, Any] = {
        "num_channels": 3,
        "hidden_act": "gelu",
        "intermediate_size": _MLP_RATIO * theirs.hidden_size,
        "qv_bias": True,
        "qkv_bias": True,
    }
    if pretraining:
        wanted["decoder_intermediate_size"] = _MLP_RATIO * theirs.decoder_hidden_size
    for key, value in wanted.items():
        if (found := getattr(theirs, key)) != value:
            raise UserError(
                f"config.json has {key}={found}, and this ViT has {value}: give weights of a plain VideoMAE"
            )
    return Config().updated(
        {
            "task": "finetune" if "head.weight" in state else "pretrain",
            "clip.frames": theirs.num_frames,
            "clip.size": _side("image_size", theirs.image_size),
            "clip.cube_frames": theirs.tubelet_size,
            "clip.cube_size": _side("patch_size", theirs.patch_size),
            "target.kind": "frame",
            "target.normalize": theirs.norm_pix_loss,
            **_encoder(theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads),
            **_decoder(
                theirs.decoder_hidden_size, theirs.decoder_num_hidden_layers, theirs.decoder_num_attention_heads
            ),
        }
    )


def _side(key: str, value: Side) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UserError(f"config.json has {key}={value}, and clips and cubes are square here: give a square model")
    return sides.pop()


def config_from_weights(state: State, hints: Mapping[str, Any]) -> Config:
    """Return the config of weights with our names (:func:`motionmae.checkpointing.load_weights.load_state`).

    Args:
        hints: arguments of VideoMAE's trainer, which its files hold beside the weights: input_size, num_frames,
            sampling_rate, tubelet_size.

    Raises:
        UserError: the shapes are not those of a plain ViT of cubes.
    """
    width, values = state["encoder.project.weight"].shape
    cube_frames, cube_size = _cube(values, hints)
    frames, size = _hint(hints, "num_frames", 16), _hint(hints, "input_size", 224)
    positions = infer_positions(state)
    if positions == "learnable":
        frames, size = _clip_of_table(len(state["encoder.pos_embed.table"]), frames, size, cube_frames, cube_size)
    changes: dict[str, Any] = {
        "task": "finetune" if "head.weight" in state else "pretrain",
        "clip.frames": frames,
        "clip.size": size,
        "clip.stride": _hint(hints, "sampling_rate", 4),
        "clip.cube_frames": cube_frames,
        "clip.cube_size": cube_size,
        "model.pos_embed": positions,
        "target.kind": "frame",
        **_encoder(width, _depth(state, "encoder."), _HEADS.get(width, max(1, width // 64))),
    }
    _check_mlp(state, "encoder.", width)
    if "decoders.space.embed.weight" in state:
        inner = len(state["decoders.space.embed.weight"])
        _check_mlp(state, "decoders.space.", inner)
        changes |= _decoder(inner, _depth(state, "decoders.space."), _DECODER_HEADS.get(inner, max(1, inner // 64)))
    return Config().updated(changes)


def infer_positions(state: State) -> str:
    """Return ``model.pos_embed`` of weights without a config: other projects' fixed tables are all sinusoidal."""
    return "learnable" if "encoder.pos_embed.table" in state else "sinusoidal"


def _hint(hints: Mapping[str, Any], key: str, default: int) -> int:
    value = hints.get(key)
    return value if isinstance(value, int) and 0 < value <= _MOST else default


def _cube(values: int, hints: Mapping[str, Any]) -> tuple[int, int]:
    """Return frames and size of a cube of ``values`` pixels, 3 colours each: 2 frames if that makes squares."""
    for frames in dict.fromkeys((_hint(hints, "tubelet_size", 2), 2, 1, 4)):
        side = math.isqrt(values // (3 * frames))
        if 3 * frames * side**2 == values:
            return frames, side
    raise UserError(f"the patch projection takes {values} values, which are no square cubes of RGB: give a video model")


def _clip_of_table(cubes: int, frames: int, size: int, cube_frames: int, cube_size: int) -> tuple[int, int]:
    """Return frames and size of the clip of a learned table of ``cubes`` positions; squares are the likeliest grid."""
    for steps in dict.fromkeys((frames // cube_frames, *(2**power for power in range(8)))):
        grid = math.isqrt(cubes // steps) if steps else 0
        if grid and steps * grid**2 == cubes:
            return steps * cube_frames, grid * cube_size
    raise UserError(f"the position table has {cubes} rows, which are no square grid of cubes: give a square model")


def _depth(state: State, prefix: str) -> int:
    numbers = [name.split(".blocks.")[1].partition(".")[0] for name in state if name.startswith(f"{prefix}blocks.")]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _check_mlp(state: State, prefix: str, width: int) -> None:
    found = state.get(f"{prefix}blocks.0.mlp.fc1.weight")
    if found is not None and len(found) != _MLP_RATIO * width:
        raise UserError(
            f"{prefix}blocks.0.mlp.fc1.weight has {len(found)} rows, and this ViT has {_MLP_RATIO} x {width}: "
            "VideoMAEv2's ViT-g has another ratio; give one of its distilled models"
        )


def _encoder(width: int, depth: int, heads: int) -> dict[str, Any]:
    presets = {(size.width, size.depth, size.heads): name for name, size in SIZES.items()}
    if name := presets.get((width, depth, heads)):
        return {"model.size": name}
    return {"model.width": width, "model.depth": depth, "model.heads": heads}


def _decoder(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {"model.decoder_width": width, "model.decoder_depth": depth, "model.decoder_heads": heads}
