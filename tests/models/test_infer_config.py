"""Configs from shapes of weights and from config.json, against transformers' own defaults and sizes worked by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VideoMAEConfig

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.infer_config import HuggingFaceConfig, config_from_huggingface, config_from_weights

SIZES = {"vit_ti": 192, "vit_s": 384, "vit_b": 768, "vit_l": 1024, "vit_h": 1280}
DEPTHS = {"vit_l": 24, "vit_h": 32}


def weights(width: int, depth: int, values: int, **more: Tensor) -> dict[str, Tensor]:
    """Return the tensors that tell the sizes, without memory."""
    with torch.device("meta"):
        blocks = {f"encoder.blocks.{number}.mlp.fc1.weight": torch.empty(4 * width, width) for number in range(depth)}
        return {"encoder.project.weight": torch.empty(width, values), **blocks, **more}


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def test_the_defaults_of_config_json_are_those_of_transformers():
    theirs, ours = VideoMAEConfig().to_dict(), HuggingFaceConfig().model_dump()
    of_a_file = {"model_type", "architectures", "id2label"}
    shared = ours.keys() & theirs.keys() - of_a_file
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    assert ours.keys() - shared - of_a_file <= {"qv_bias", "qkv_bias"}  # one of the two, by the version
    assert ours["qv_bias"]
    assert ours["qkv_bias"]


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_of_vit_are_recognised(size: str):
    config = config_from_weights(weights(SIZES[size], DEPTHS.get(size, 12), 1536), {})
    assert config.model == Config().updated({"model.size": size}).model
    assert (config.task, config.target.kind, config.model.pos_embed) == ("pretrain", "frame", "sinusoidal")
    clip = config.clip
    assert (clip.frames, clip.size, clip.stride, clip.cube_frames, clip.cube_size) == (16, 224, 4, 2, 16)


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(768, 11, 12), (640, 12, 10), (1408, 40, 16), (1664, 48, 16), (1280, 30, 16), (100, 1, 1), (32, 1, 1)],
)
def test_other_sizes_have_64_channels_a_head_but_for_the_released_giants(width: int, depth: int, heads: int):
    """VideoMAEv2's ViT-g has 1408 / 16, and the ViT-e of its paper 1664 / 16."""
    model = config_from_weights(weights(width, depth, 1536), {}).model.dimensions
    assert (model.width, model.depth, model.heads) == (width, depth, heads)


@pytest.mark.parametrize(("inner", "heads"), [(384, 6), (512, 8), (640, 8), (192, 3), (32, 1)])
def test_decoders_of_the_released_sizes(inner: int, heads: int):
    more = {
        "decoders.space.embed.weight": empty(inner, 768),
        "decoders.space.blocks.0.mlp.fc1.weight": empty(4 * inner, inner),
        "decoders.space.blocks.3.norm1.weight": empty(inner),
    }
    model = config_from_weights(weights(768, 12, 1536, **more), {}).model
    assert (model.dimensions.decoder_width, model.decoder_depth, model.dimensions.decoder_heads) == (inner, 4, heads)


@pytest.mark.parametrize(
    ("values", "hints", "cube"),
    [
        (2 * 16 * 16 * 3, {}, (2, 16)),
        (1 * 16 * 16 * 3, {}, (1, 16)),
        (4 * 16 * 16 * 3, {"tubelet_size": 1}, (1, 32)),
        (4 * 16 * 16 * 3, {"tubelet_size": 4}, (4, 16)),
        (4 * 16 * 16 * 3, {"tubelet_size": 0}, (1, 32)),  # an impossible hint
        (2 * 16 * 16 * 3, {"tubelet_size": 3}, (2, 16)),
        (2 * 14 * 14 * 3, {"tubelet_size": "2"}, (2, 14)),
    ],
)
def test_cubes_are_squares_of_two_frames_if_that_is_possible(values: int, hints: dict[str, Any], cube: tuple[int, int]):
    size = 224 if 224 % cube[1] == 0 else cube[1] * 10
    clip = config_from_weights(weights(768, 12, values), hints | {"input_size": size}).clip
    assert (clip.cube_frames, clip.cube_size, clip.size) == (*cube, size)


@pytest.mark.parametrize(
    ("rows", "hints", "frames", "size"),
    [
        (8 * 14 * 14, {}, 16, 224),
        (8 * 7 * 7, {}, 16, 112),
        (1 * 11 * 11, {}, 2, 176),
        (16 * 10 * 10, {"num_frames": 32}, 32, 160),
        (2 * 5 * 5, {}, 4, 80),
    ],
)
def test_a_learned_table_tells_the_clip(rows: int, hints: dict[str, Any], frames: int, size: int):
    state = weights(768, 12, 1536, **{"encoder.pos_embed.table": empty(rows, 768)})
    clip = config_from_weights(state, hints).clip
    assert (clip.frames, clip.size) == (frames, size)


def test_the_arguments_of_a_trainer_beside_the_weights_are_followed():
    hints = {"num_frames": 32, "input_size": 160, "sampling_rate": 2, "tubelet_size": 2}
    clip = config_from_weights(weights(768, 12, 1536), hints).clip
    assert (clip.frames, clip.size, clip.stride, clip.cube_frames) == (32, 160, 2, 2)
    odd = {"num_frames": 1 << 17, "input_size": "224", "sampling_rate": -1}
    clip = config_from_weights(weights(768, 12, 1536), odd).clip
    assert (clip.frames, clip.size, clip.stride) == (16, 224, 4)
    assert config_from_weights(weights(768, 12, 1536, **{"head.weight": empty(3, 768)}), {}).task == "finetune"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (weights(768, 12, 3 * 2 * 15 * 16), "no square cubes"),
        (weights(768, 12, 1536, **{"encoder.pos_embed.table": empty(7 * 13, 768)}), "no square grid"),
        (weights(768, 12, 1536) | {"encoder.blocks.0.mlp.fc1.weight": empty(6144, 768)}, "has 6144 rows"),
    ],
)
def test_shapes_of_other_models_are_refused(state: dict[str, Tensor], said: str):
    with pytest.raises(UserError, match=said):
        config_from_weights(state, {})


def test_config_json_of_transformers_is_followed():
    theirs = HuggingFaceConfig(image_size=[96, 96], patch_size=8, num_frames=8, tubelet_size=4, norm_pix_loss=False)
    config = config_from_huggingface(theirs, {})
    clip = config.clip
    assert (clip.frames, clip.size, clip.cube_frames, clip.cube_size) == (8, 96, 4, 8)
    assert (config.task, config.target.kind, config.target.normalize) == ("pretrain", "frame", False)
    assert config.model.dimensions == Config().model.dimensions
    assert config_from_huggingface(HuggingFaceConfig(), {"head.weight": empty(3, 768)}).task == "finetune"


@pytest.mark.parametrize(
    ("settings", "state", "said"),
    [
        ({"num_channels": 4}, (), "num_channels=4"),
        ({"hidden_act": "relu"}, (), "hidden_act=relu"),
        ({"intermediate_size": 3073}, (), "intermediate_size=3073, and this ViT has 3072"),
        ({"qv_bias": False}, (), "qv_bias=False"),
        ({"qkv_bias": False}, (), "qkv_bias=False"),
        ({"decoder_intermediate_size": 1537}, ("decoders.space.mask_token",), "decoder_intermediate_size=1537"),
        ({"image_size": (224, 208)}, (), "image_size"),
        ({"patch_size": (16, 8)}, (), "patch_size"),
    ],
)
def test_config_json_of_another_model_is_refused(settings: dict[str, Any], state: tuple[str, ...], said: str):
    with pytest.raises(UserError, match=said):
        config_from_huggingface(HuggingFaceConfig(**settings), {name: empty(1) for name in state})
    if "decoder_intermediate_size" in settings:
        config_from_huggingface(HuggingFaceConfig(**settings), {})  # without a decoder it does not matter
