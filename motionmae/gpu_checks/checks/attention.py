"""Check of the attention kernels that torch chooses for our shapes: exact, finite, and how fast.

Very negative scores at 64 modulo 128 keys have given NaN gradients in cuDNN before 9.26 (pytorch issue 196678).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from motionmae.config import Config, load_config
from motionmae.engine.kernels import choose_kernels
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import device_of
from motionmae.gpu_checks.measure import device_kernels, is_attention, seconds_of
from motionmae.models.masking import step_cubes
from motionmae.models.vit import attend

_CONFIGS = ("vitb_k400", "vitl_k400", "vith_k400", "vitl_ssv2_32f")
_SCORES = (0.0, -120.0)  # added to all scores of a row, which leaves the result unchanged
_OUTPUT_ERROR, _GRADIENT_ERROR = 0.02, 0.05  # relative to the norm; bf16 has 8 bits


class Shape(NamedTuple):
    """Shape of an attention: (batch, heads, queries, width of a head), with ``keys`` keys and values."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int

    def __str__(self) -> str:
        return f"{self.queries}x{self.keys}x{self.width}, {self.heads} heads, batch {self.batch}"


def shapes_of(config: Config) -> Iterator[Shape]:
    """Yield the shapes in the encoder and in the decoders of a config."""
    size, cubes, batch = config.model.dimensions, step_cubes(config), config.engine.micro_batch_size
    yield Shape(batch, size.heads, cubes.visible, cubes.visible, size.width // size.heads)
    width = size.decoder_width // size.decoder_heads
    yield Shape(batch, size.decoder_heads, cubes.decoder, cubes.decoder, width)
    yield Shape(batch, size.decoder_heads, cubes.queries, cubes.decoder, width)


def check_attention(setting: Setting) -> Figures:
    """Compare output and gradients of every shape with the exact formula in fp32."""
    figures: Figures = {"worst_error": 0.0, "worst_gradient_error": 0.0, "kernels": [], "shapes": {}}
    for name in _CONFIGS[:1] if setting.quick else _CONFIGS:
        config = load_config(name)
        with _kernels_of(config, device_of(setting)):
            for shape in dict.fromkeys(shapes_of(config)):
                for score in _SCORES:
                    _add_shape(figures, shape, score, device_of(setting))
    return figures


@contextmanager
def _kernels_of(config: Config, device: torch.device) -> Iterator[None]:
    """Choose the kernels of a run of ``config``; afterwards, restore the former choice for later configs and checks."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    choose_kernels(config, device)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _add_shape(figures: Figures, shape: Shape, score: float, device: torch.device) -> None:
    """Measure a shape, unless another config has it too, and require that it is finite and exact."""
    name = f"{shape}, scores {score:+.0f}"
    if name in figures["shapes"]:
        return
    measured = figures["shapes"][name] = try_shape(shape, score, device, timed=score == 0)
    error, gradient_error = measured["error"], measured["gradient_error"]
    figures["worst_error"] = max(figures["worst_error"], error)
    figures["worst_gradient_error"] = max(figures["worst_gradient_error"], gradient_error)
    figures["kernels"] = sorted({*figures["kernels"], *measured["kernels"]})
    require(measured["finite"], f"attention {name}: output or gradients are not finite", figures)
    require(error < _OUTPUT_ERROR, f"attention {name}: error {error:.1%}", figures)
    require(gradient_error < _GRADIENT_ERROR, f"attention {name}: error of gradients {gradient_error:.1%}", figures)


def try_shape(shape: Shape, score: float, device: torch.device, timed: bool) -> Figures:
    """Measure errors, kernels and time of a forward and backward pass in bf16."""
    q, k, v = _inputs(shape, score, device)
    slope = torch.randn_like(q)

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        output = attend(q, k, v)
        return output, torch.autograd.grad(output, (q, k, v), slope, materialize_grads=True)

    kernels = [kernel.name for kernel in device_kernels(run)] if device.type == "cuda" else []
    output, gradients = run()
    exact, exact_gradients = _exact(q, k, v, slope)
    # channel 0 of q and k only shifts the scores: its gradient is a sum that cancels, times a large number
    kept = slice(1, None) if score else slice(None)
    errors = [
        _error(gradient[:1, ..., kept], right[..., kept])
        for gradient, right in zip(gradients, exact_gradients, strict=True)
    ]
    return {
        "finite": all(bool(part.isfinite().all()) for part in (output, *gradients)),
        "error": _error(output[:1], exact),
        "gradient_error": max(errors),
        "ms": 1e3 * seconds_of(run, 10, device) if timed else None,
        "kernels": sorted({name[:60] for name in kernels if is_attention(name)}),
    }


def _inputs(shape: Shape, score: float, device: torch.device) -> list[Tensor]:
    """Make q, k and v as :class:`motionmae.models.vit.JointAttention` does: transposed views of (B, tokens, heads)."""
    torch.manual_seed(0)
    parts = []
    for tokens in (shape.queries, shape.keys, shape.keys):
        size = (shape.batch, tokens, shape.heads, shape.width)
        parts.append(0.5 * torch.randn(size, device=device).bfloat16().transpose(1, 2))
    if score:
        parts[0][..., 0], parts[1][..., 0] = 1.0, score * math.sqrt(shape.width)
    return [part.detach().requires_grad_() for part in parts]


def _exact(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute output and gradients of the first clip by the plain formula in fp32."""
    q, k, v = (part.detach()[:1].float().requires_grad_() for part in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        output = scaled_dot_product_attention(q, k, v)
        gradients = torch.autograd.grad(output, (q, k, v), slope[:1].float())
    return output.detach(), gradients


def _error(value: Tensor, right: Tensor) -> float:
    return float((value.detach().float() - right).norm() / right.norm())
