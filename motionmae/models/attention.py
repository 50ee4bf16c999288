"""Scaled dot-product attention: torch's fused kernels, and products of matrices where those are faster."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_WEIGHTS_AT_ONCE = 2_500_000
"""Attention weights in hand at once: about what a core's caches hold."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v: (B, heads, Q, D) and twice (B, heads, K, D) -> (B, heads, Q, D).

    The one place that chooses: training in bfloat16 on a CPU takes :class:`_CpuProducts`, all else is torch's.
    """
    trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if trained and q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        return _CpuProducts.apply(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v)


class _CpuProducts(torch.autograd.Function):
    """Attention as products of matrices in bfloat16, which keeps its weights for the backward pass.

    torch's fused kernel goes backward in float32 and leaves a processor's bfloat16 units idle (docs/performance.md).
    The price is the one of VideoMAE's own code: B * heads * Q * K weights of two bytes are kept for each block;
    ``model.activation_checkpointing`` helps where they do not fit. A few heads at a time stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B * heads, tokens, D)
        weights = q.new_empty(len(q), q.shape[1], k.shape[1])
        attended = torch.empty_like(q)
        for part in _parts(weights):
            torch.baddbmm(q.new_empty(()), q[part], k[part].mT, beta=0, alpha=_scale(q), out=weights[part])
            torch.softmax(weights[part], -1, out=weights[part])
            torch.bmm(weights[part], v[part], out=attended[part])
        ctx.save_for_backward(q, k, v, weights)
        return attended.view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors  # asked for once only: activation checkpointing recomputes them then
        split, grad = grads[0].shape[:2], grads[0].flatten(0, 1)
        grad_q = torch.empty_like(q)
        grad_kt, grad_vt = (x.new_empty(x.mT.shape) for x in (k, v))  # (B * heads, D, K): faster so
        for part in _parts(weights):
            torch.bmm(grad[part].mT, weights[part], out=grad_vt[part])
            slope = torch.bmm(grad[part], v[part].mT)
            torch.ops.aten._softmax_backward_data.out(slope, weights[part], -1, slope.dtype, grad_input=slope)
            torch.baddbmm(q.new_empty(()), slope, k[part], beta=0, alpha=_scale(q), out=grad_q[part])
            torch.baddbmm(q.new_empty(()), q[part].mT, slope, beta=0, alpha=_scale(q), out=grad_kt[part])
        return grad_q.unflatten(0, split), grad_kt.mT.unflatten(0, split), grad_vt.mT.unflatten(0, split)


def _parts(weights: Tensor) -> Iterator[slice]:
    """Cut (B * heads, Q, K) into runs of heads whose weights stay in the cache."""
    at_once = max(_WEIGHTS_AT_ONCE // (weights.shape[1] * weights.shape[2]), 1)
    return (slice(first, first + at_once) for first in range(0, len(weights), at_once))


def _scale(q: Tensor) -> float:
    return float(q.shape[2] ** -0.5)
