"""Scaled dot-product attention: torch's fused kernels, with a backward pass of our own where torch's is slow."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_WEIGHTS_AT_ONCE = 2_500_000
"""Attention weights that the backward pass below has in hand: about what a core's second-level cache holds."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v: (B, heads, Q, D) and twice (B, heads, K, D) -> (B, heads, Q, D).

    The one place that chooses: bfloat16 on a CPU goes backward by :class:`_CpuBackward`, all else is torch's.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        return _CpuBackward.apply(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v)


class _CpuBackward(torch.autograd.Function):
    """torch's attention, whose backward pass is products of matrices in bfloat16.

    torch's own computes in float32, and leaves a processor's bfloat16 units idle (docs/performance.md). As there, the
    weights are made anew, so nothing is kept but q, k and v; a few heads at a time, so they stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return functional.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = ctx.saved_tensors  # asked for once only: activation checkpointing recomputes them then
        shape_q, shape_k = kept[0].shape, kept[1].shape
        q, k, v, grad = (x.flatten(0, 1) for x in (*kept, *grads))  # (B * heads, tokens, D)
        scale = q.shape[2] ** -0.5
        grad_q = torch.empty_like(q)
        grad_kt, grad_vt = (x.new_empty(x.mT.shape) for x in (k, v))  # (B * heads, D, K): faster so
        at_once = max(_WEIGHTS_AT_ONCE // (q.shape[1] * k.shape[1]), 1)
        for first in range(0, len(q), at_once):
            part = slice(first, first + at_once)
            logits = torch.baddbmm(q.new_empty(()), q[part], k[part].mT, beta=0, alpha=scale)
            weights = torch.softmax(logits, -1, out=logits)
            torch.bmm(grad[part].mT, weights, out=grad_vt[part])
            slope = torch.bmm(grad[part], v[part].mT)
            torch.ops.aten._softmax_backward_data.out(slope, weights, -1, slope.dtype, grad_input=slope)
            torch.baddbmm(q.new_empty(()), slope, k[part], beta=0, alpha=scale, out=grad_q[part])
            torch.baddbmm(q.new_empty(()), q[part].mT, slope, beta=0, alpha=scale, out=grad_kt[part])
        return (
            grad_q.view(shape_q),
            grad_kt.mT.unflatten(0, shape_k[:2]),
            grad_vt.mT.unflatten(0, shape_k[:2]),
        )
