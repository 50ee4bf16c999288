import pytest
import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.motionmae import build_motionmae
from motionmae.models.vit import Decoder
from tests.models.tiny import noise_clips, tiny

SEEDS = torch.arange(4)


def config_of(decoder_init: str) -> Config:
    model = {"decoder_init": decoder_init, "pos_embed": "separate", "decoder_width": 96, "decoder_heads": 3}
    return tiny(clip={"frames": 16, "size": 64}, model=model, mask={"ratio": 0.8})


def first_attention(config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention (B, heads, Q, K) of masked cubes in the first block of the time decoder, distances, visible.

    Distances are (B, Q, K) in cubes, along all axes together. ``visible`` is bool (B, K).
    """
    model = build_motionmae(config)
    decoder = model.decoders["time"]
    assert isinstance(decoder, Decoder)
    mask, clip = model.draw_masks(SEEDS), config.clip
    encoded = torch.randn(len(SEEDS), mask.visible.shape[1], config.model.dimensions.width)
    tokens = []
    decoder.blocks[0].attn.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    with torch.no_grad():
        decoder(encoded, mask.visible, mask.masked)
    attention = decoder.blocks[0].attn
    heads = (3, attention.num_heads, -1)
    bias = torch.cat([attention.q_bias, attention.q_bias.new_zeros(2 * len(attention.q_bias))])
    q, k, _ = (
        torch.nn.functional.linear(tokens[0], attention.qkv.weight, bias).unflatten(2, heads).permute(2, 0, 3, 1, 4)
    )
    scores = q[:, :, mask.visible.shape[1] :] @ k.mT * q.shape[3] ** -0.5
    numbers = torch.cat([mask.visible, mask.masked], 1)
    places = torch.stack(
        [numbers // clip.spatial_patches, numbers // clip.grid_size % clip.grid_size, numbers % clip.grid_size], -1
    )
    distances = (places[:, mask.visible.shape[1] :, None] - places[:, None]).abs().sum(-1)
    visible = torch.arange(numbers.shape[1]) < mask.visible.shape[1]
    return scores.softmax(-1).detach(), distances, visible.expand(len(SEEDS), -1)


def test_masked_cubes_attend_to_visible_cubes_nearby():
    shares = {}
    for name in ("xavier", "local"):
        attention, distances, visible = first_attention(config_of(name))
        near = (distances <= 2)[:, None]
        shares[name] = [float(attention.mul(where).sum(-1).mean()) for where in (near, visible[:, None, None])]
    assert shares["xavier"][0] < 0.1
    assert shares["xavier"][1] < 0.3
    assert shares["local"][0] > 0.3
    assert shares["local"][1] > 0.7


def test_heads_look_to_different_sides():
    attention = first_attention(config_of("local"))[0]
    pairs = [(attention[:, a] - attention[:, b]).abs().sum(-1).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(pairs) > 0.5


def test_predictions_begin_near_zero():
    predictions = []
    for name in ("xavier", "local"):
        model = build_motionmae(config_of(name))
        for decoder in model.decoders.values():
            decoder.register_forward_hook(lambda _, inputs, output: predictions.append(output))
        model(noise_clips(config_of(name)), SEEDS)
    sizes = [next(iter(found.values())).std().item() for found in predictions]
    assert min(sizes[:2]) > 0.3
    assert max(sizes[2:]) < 0.02


@pytest.mark.parametrize(
    ("model", "remedy"),
    [({"pos_embed": "learnable"}, "pos_embed=separate"), ({"pos_embed": "separate", "decoder_heads": 12}, "fewer")],
)
def test_settings_without_room_are_refused(model: dict, remedy: str):
    with pytest.raises(UserError, match=remedy):
        tiny(model={"decoder_init": "local", **model})
