import pytest
import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.local_attention import _features
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


def test_the_random_weights_are_scaled_as_written():
    """Both decoders draw the same random weights; the local ones are then changed."""
    drawn, local = (build_motionmae(config_of(name)).decoders["time"] for name in ("xavier", "local"))
    torch.testing.assert_close(local.heads["time"].weight, 0.01 * drawn.heads["time"].weight)
    torch.testing.assert_close(local.embed.weight, 0.5 * drawn.embed.weight)
    assert local.mask_token.std().item() == pytest.approx(0.5)
    torch.testing.assert_close(local.mask_token / 0.5, drawn.mask_token / drawn.mask_token.std())
    q, k, v = local.blocks[1].attn.qkv.weight.unflatten(0, (3, 3, -1))  # (heads, 32 channels, width)
    random_q, random_k, random_v = drawn.blocks[1].attn.qkv.weight.unflatten(0, (3, 3, -1))
    torch.testing.assert_close(q[:, 7:], 0.3 * random_q[:, 7:])
    torch.testing.assert_close(k[:, 7:], 0.3 * random_k[:, 7:])
    assert torch.equal(v, random_v)
    assert (q[:, 6] == 0).all()


def test_each_head_looks_at_its_own_neighbour():
    """Tokens that hold a position only: 3 heads of 2 blocks look left, right, up, down, back and ahead."""
    config = config_of("local")
    clip, decoder = config.clip, build_motionmae(config).decoders["time"]
    cubes = torch.arange(clip.cubes).view(clip.temporal_patches, clip.grid_size, clip.grid_size)
    inner = cubes[1:-1, 1:-1, 1:-1].flatten()
    tokens = decoder.blocks[0].norm1(decoder.pos_embed.table)
    found = []
    for block in decoder.blocks:
        q, k, _ = block.attn.qkv.weight.unflatten(0, (3, 3, -1))
        for head in range(3):
            best = ((tokens[inner] @ q[head, :6].T) @ (tokens @ k[head, :6].T).T).argmax(1)
            found.append(int((best - inner).mode().values))
    row, time = clip.grid_size, clip.spatial_patches
    assert found == [-1, 1, -row, row, -time, time]


def test_the_attention_is_a_normal_density_of_seven_tenths_of_a_cube():
    """The logit one cube from the centre is (1 - cos f) / (0.7 f)^2 lower, f = pi / 8: 1.007, near 1 / (2 * 0.7^2)."""
    clip = config_of("local").clip
    scores = _features(clip, (0, 0, 0)) @ _features(clip, (0, 0, 0)).T
    row, time = clip.grid_size, clip.spatial_patches
    cube = 2 * time + 3 * row + 3
    for step in (1, -1, row, -row, time, -time):
        assert float(scores[cube, cube] - scores[cube, cube + step]) == pytest.approx(1.00733, abs=1e-4)
    shifted = _features(clip, (1, 0, 0)) @ _features(clip, (0, 0, 0)).T
    torch.testing.assert_close(shifted[cube], scores[cube + time])


def test_a_masked_cube_is_attended_to_by_the_factor_of_eight_logits_less():
    decoder = build_motionmae(config_of("local")).decoders["time"]
    attention = decoder.blocks[0].attn
    masked = decoder.blocks[0].norm1(decoder.mask_token + decoder.pos_embed.table)
    key = attention.qkv.weight.unflatten(0, (3, 3, -1))[1, 0, 6]
    logits = attention.q_bias.view(3, -1)[0, 6] * (masked @ key) / 32**0.5
    assert logits.mean().item() == pytest.approx(-8, rel=0.05)


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
