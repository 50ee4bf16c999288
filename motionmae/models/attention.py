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

    The one place that chooses: training in bfloat16 on a CPU takes :func:`_products`, all else is torch's.
    """
    trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if trained and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _products(q, k, v)[0]
    return functional.scaled_dot_product_attention(q, k, v)


@torch.library.custom_op("motionmae::attention", mutates_args=())
def _products(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention as products of matrices in bfloat16, and its weights (B * heads, Q, K), which the backward pass reads.

    torch's fused kernel goes backward in float32 and leaves a processor's bfloat16 units idle (docs/performance.md).
    The price is the one of VideoMAE's own code: B * heads * Q * K weights of two bytes are kept for each block;
    ``model.activation_checkpointing`` helps where they do not fit. A few heads at a time stay in the cache.
    An operator of its own, as torch.compile would make copies where results are written into parts of a tensor.
    """
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B * heads, tokens, D)
    weights = q.new_empty(len(q), q.shape[1], k.shape[1])
    attended = q.new_empty(q.shape)  # contiguous, whatever the layout of one clip's q
    for part in _parts(weights):
        torch.baddbmm(q.new_empty(()), q[part], k[part].mT, beta=0, alpha=_scale(q), out=weights[part])
        torch.softmax(weights[part], -1, out=weights[part])
        torch.bmm(weights[part], v[part], out=attended[part])
    return attended.view(shape), weights


@torch.library.custom_op("motionmae::attention_backward", mutates_args=())
def _products_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by that of the result; those of k and v are laid out (B, heads, D, K)."""
    split = q.shape[:2]
    grad, q, k, v = (x.flatten(0, 1) for x in (grad, q, k, v))
    grad_q = q.new_empty(q.shape)
    grad_kt, grad_vt = (x.new_empty(x.mT.shape) for x in (k, v))  # (B * heads, D, K): faster so
    for part in _parts(weights):
        torch.bmm(grad[part].mT, weights[part], out=grad_vt[part])
        slope = torch.bmm(grad[part], v[part].mT)
        torch.ops.aten._softmax_backward_data.out(slope, weights[part], -1, slope.dtype, grad_input=slope)
        torch.baddbmm(q.new_empty(()), slope, k[part], beta=0, alpha=_scale(q), out=grad_q[part])
        torch.baddbmm(q.new_empty(()), q[part].mT, slope, beta=0, alpha=_scale(q), out=grad_kt[part])
    return grad_q.unflatten(0, split), grad_kt.mT.unflatten(0, split), grad_vt.mT.unflatten(0, split)


@_products.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[0] * q.shape[1], q.shape[2], k.shape[2])


@_products_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_k, grad_v = (x.new_empty(x.mT.shape).mT for x in (k, v))
    return q.new_empty(q.shape), grad_k, grad_v


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # nobody asks for the weights' own, which would be as many zeros


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
    return _products_backward(grad, *ctx.saved_tensors)


_products.register_autograd(_backward, setup_context=_keep)


def _parts(weights: Tensor) -> Iterator[slice]:
    """Cut (B * heads, Q, K) into runs of heads whose weights stay in the cache."""
    at_once = max(_WEIGHTS_AT_ONCE // (weights.shape[1] * weights.shape[2]), 1)
    return (slice(first, first + at_once) for first in range(0, len(weights), at_once))


def _scale(q: Tensor) -> float:
    return float(q.shape[2] ** -0.5)
