from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from motionmae.models.classifier import Classifier
from motionmae.models.cubes import all_cubes, cut_patches
from motionmae.models.motionmae import MotionMAE
from motionmae.models.vit import BlockStack, Decoder, Encoder, JointBlock, _heads
from tests.models.tiny import noise_clips, tiny


def test_q_and_v_carry_a_bias_and_k_has_none():
    names = {name for name, _ in BlockStack(48, 1, 3, tiny().model).named_parameters()}
    assert {"0.attn.q_bias", "0.attn.v_bias"} <= names
    assert not {name for name in names if "k_bias" in name or "qkv.bias" in name}


def test_every_layernorm_uses_videomaes_epsilon():
    """Two in a block and one at the end, of an encoder of 2 blocks and of two decoders of 2 blocks."""
    config = tiny()
    for model, count in ((MotionMAE(config), 3 * 5), (Classifier(config, 3), 5)):
        norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
        assert [norm.eps for norm in norms] == [1e-6] * count


def test_projection_equals_a_convolution_over_normalised_pixels():
    """The encoder's first step against VideoMAE's: normalise the clip, convolve with stride, pick the visible cubes."""
    config = tiny(model={"depth": 1})
    torch.manual_seed(0)
    encoder = Encoder(config.clip, config.model)
    encoder.blocks = nn.Identity()
    encoder.norm = nn.Identity()
    clips = noise_clips(config, 2)
    numbers = torch.tensor([[3, 17, 60], [0, 1, 63]])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
    pixels = (clips.double() / 255 - mean) / std
    kernel = encoder.project.weight.double().view(48, 2, 8, 8, 3).permute(0, 4, 1, 2, 3)
    every = nn.functional.conv3d(pixels.permute(0, 4, 1, 2, 3), kernel, encoder.project.bias.double(), stride=(2, 8, 8))
    every = every.flatten(2).transpose(1, 2) + encoder.pos_embed.table  # (B, N, width)
    found = encoder(cut_patches(clips, 8), numbers)
    expected = torch.stack([every[i, numbers[i]] for i in range(2)])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_without_an_index_the_encoder_looks_at_all_cubes():
    config = tiny()
    encoder = Encoder(config.clip, config.model)
    patches = cut_patches(noise_clips(config, 2), 8)
    every = torch.arange(config.clip.cubes).expand(2, -1)
    assert all_cubes(patches, 2).shape[1] == config.clip.cubes
    torch.testing.assert_close(encoder(patches), encoder(patches, every))


def test_initial_weights_are_as_the_method_says():
    torch.manual_seed(0)
    config = tiny(model={"width": 96, "heads": 3})
    encoder = Encoder(config.clip, config.model)
    for part in encoder.modules():
        if isinstance(part, nn.Linear):
            bound = (6 / (part.in_features + part.out_features)) ** 0.5
            assert part.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert part.bias is None or (part.bias == 0).all()
    assert (encoder.blocks[0].attn.q_bias == 0).all()


def test_mask_tokens_begin_with_the_deviation_of_videomae():
    """trunc_normal_ of 0.02, as in modeling_pretrain.py of VideoMAE; biases and norms begin neutral."""
    torch.manual_seed(0)
    config = tiny(model={"decoder_width": 4096, "decoder_heads": 64, "decoder_depth": 1})
    decoder = Decoder(config.clip, config.model, {"space": 8})
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.05)
    assert decoder.embed.bias is None
    assert (decoder.heads["space"].bias == 0).all()
    assert decoder.heads["space"].weight.abs().max().item() == pytest.approx((6 / 4104) ** 0.5, rel=0.01)


def test_cube_projection_can_keep_pytorchs_initial_weights():
    torch.manual_seed(0)
    config = tiny(model={"patch_embed_init": "pytorch"})
    project = Encoder(config.clip, config.model).project
    bound = config.clip.cube_pixels**-0.5  # torch's bound for weight and bias of a Conv3d of that kernel
    assert project.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert 0 < project.bias.abs().max().item() <= bound


def share_of_motion(patch_embed_init: str) -> float:
    """Return the variance of a token's change relative to its variance if a smooth picture moves by one pixel."""
    torch.manual_seed(0)
    config = tiny(model={"patch_embed_init": patch_embed_init})
    project, clip = Encoder(config.clip, config.model).project, config.clip
    wide = torch.randn(500, clip.cube_size, clip.cube_size + 1, 3).cumsum(1).cumsum(2)
    first, second = wide[:, :, 1:], wide[:, :, :-1]
    with torch.no_grad():
        still, moving = (project(torch.stack([first, frame], 1).flatten(1)) for frame in (first, second))
    return float((moving - still).var() / still.var())


def test_whitened_projection_amplifies_motion():
    assert share_of_motion("whitened") > 3 * share_of_motion("xavier")


def gradients(model: dict, drop_path: float = 0.0) -> tuple[Tensor, list[Tensor], int]:
    """Return the output of a stack, its gradients, and the number of block runs."""
    torch.manual_seed(0)
    stack = BlockStack(48, 4, 3, tiny(model=model).model, drop_path).train()
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for block in stack:
        block.attn.register_forward_hook(count)
    tokens = torch.randn(3, 10, 48, requires_grad=True)
    torch.manual_seed(1)
    output = stack(tokens)
    output.square().sum().backward()
    grads = [weight.grad for weight in stack.parameters()]
    assert tokens.grad is not None
    return output.detach(), [tokens.grad, *grads], runs


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize(
    ("model", "runs"),
    [
        ({"activation_checkpointing": "full"}, 8),
        ({"activation_checkpointing": "every_n", "checkpoint_every": 2}, 6),
        ({"activation_checkpointing": "every_n", "checkpoint_every": 3}, 6),
        ({"activation_checkpointing": "every_n", "checkpoint_every": 4}, 5),
    ],
)
def test_activation_checkpointing_is_bitwise_the_same_and_does_recompute(model: dict, runs: int, drop_path: float):
    plain, plain_grads, plain_runs = gradients({}, drop_path)
    output, grads, found = gradients(model, drop_path)
    assert torch.equal(plain, output)
    assert all(torch.equal(a, b) for a, b in zip(plain_grads, grads, strict=True))
    assert plain_runs == 4
    assert found == runs


def test_nothing_is_recomputed_where_no_gradient_is_wanted():
    config = tiny(model={"activation_checkpointing": "full"})
    stack = BlockStack(48, 2, 3, config.model)
    with torch.no_grad():
        assert not stack(torch.randn(1, 4, 48)).requires_grad


@pytest.mark.parametrize("num_queries", [None, 2])
def test_drop_path_drops_the_attention_and_the_mlp(num_queries: int | None):
    """At a probability near 1, a block in training returns its input."""
    torch.manual_seed(0)
    block = JointBlock(48, 3, qkv_bias=True, drop_path=1 - 1e-6)
    tokens = torch.randn(5, 4, 48)
    queries = tokens if num_queries is None else tokens[:, -num_queries:]
    assert torch.equal(block(tokens, num_queries), queries)
    assert not torch.equal(block.eval()(tokens, num_queries), queries)


def test_drop_path_drops_each_clip_by_itself_and_scales_the_rest():
    torch.manual_seed(0)
    block = JointBlock(48, 3, qkv_bias=True, drop_path=0.5)
    tokens = torch.randn(1, 4, 48).expand(64, -1, -1)
    block.mlp = nn.Identity()
    block.norm2 = nn.Identity()
    attended = block.attn(block.norm1(tokens[:1]))[0]
    once, both = tokens[0] + 2 * attended, tokens[0]
    possible = torch.stack([both, both + 2 * both, once, once + 2 * once])  # nothing, MLP, attention, both
    distances = (block(tokens)[:, None] - possible).abs().amax((2, 3))
    assert distances.amin(1).max() < 1e-4
    assert distances.argmin(1).bincount(minlength=4).min() > 5  # 16 expected of each


def test_drop_path_grows_linearly_and_only_acts_in_training():
    stack = BlockStack(48, 3, 3, tiny().model, drop_path=0.2)
    for part in ("drop_path1", "drop_path2"):
        rates = [getattr(getattr(block, part), "drop_prob", 0.0) for block in stack]
        assert rates == pytest.approx([0, 0.1, 0.2])
    tokens = torch.randn(8, 4, 48)
    stack.eval()
    assert torch.equal(stack(tokens), stack(tokens))


class _Copies(TorchDispatchMode):
    """Dispatch mode that counts the bytes of copies."""

    written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::stack", "aten::clone", "aten::cat"):
            self.written += result.nbytes
        return result


def test_gradients_of_q_k_and_v_are_copied_once() -> None:
    product = torch.randn(2, 64, 576, requires_grad=True)  # (clips, tokens, q k v)
    attended = scaled_dot_product_attention(*_heads(product.unflatten(2, (3, 3, 64)))).transpose(1, 2).flatten(2).sum()
    with _Copies() as copies:
        attended.backward()
    assert copies.written == product.nbytes
