"""Scaled dot-product attention with torch's fused kernels, except for training in bfloat16 on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v. q and the result are (B, heads, Q, D), k and v are (B, heads, K, D).

    torch's CPU flash kernel runs its backward pass in float32: a training step in bfloat16 takes 1.4 to 1.5 times as
    long with this kernel (docs/performance.md). Plain matrix products use the bfloat16 units in both directions. Like
    VideoMAE's own code, they store the attention weights for the backward pass: B * heads * Q * K values per block.
    """
    trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not (trained and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        return functional.scaled_dot_product_attention(q, k, v)
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B * heads, tokens, D)
    # baddbmm scales in float32, before the scores (B * heads, Q, K) are rounded to bfloat16
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=q.shape[2] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).view(shape)
