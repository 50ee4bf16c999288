from collections import Counter
from typing import Any

import pytest
import torch
from timm.models.beit import Attention
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from motionmae.models.vit import JointAttention, attend


def _trained(dtype: torch.dtype, queries: int, keys: int) -> list[Tensor]:
    """The result and the gradients of q, k and v, which are laid out as a projection gives them."""
    torch.manual_seed(0)
    q, k, v, slope = (torch.randn(2, n, 3, 16).bfloat16().to(dtype) for n in (queries, keys, keys, queries))
    inputs = [x.transpose(1, 2).requires_grad_() for x in (q, k, v)]
    attended = checkpoint(attend, *inputs, use_reentrant=False)
    attended.backward(slope.transpose(1, 2))
    return [x.double() for x in (attended.detach(), *(x.grad for x in inputs)) if x is not None]


@pytest.mark.parametrize("queries", [40, 33])
def test_training_in_bfloat16_is_that_in_double_precision(queries: int) -> None:
    found = _trained(torch.bfloat16, queries, 40)
    assert len(found) == 4
    for ours, true in zip(found, _trained(torch.float64, queries, 40), strict=True):
        assert (ours - true).norm() < 0.01 * true.norm()


def test_training_in_bfloat16_keeps_the_weights_once() -> None:
    saved: dict[int, int] = {}
    q = torch.randn(1, 2, 50, 16, dtype=torch.bfloat16, requires_grad=True)
    pack = lambda x: saved.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attend(q, q.clone(), q.clone())
    assert sum(saved.values()) == 2 * (3 * q.numel() + 2 * 50 * 50)


@pytest.mark.parametrize("clips", [1, 2])
def test_torchs_compiler_gives_the_same(clips: int) -> None:
    """Forward and backward pass in one graph, which is not broken in between."""
    shapes = (33, 40, 40)
    inputs = [torch.randn(clips, n, 3, 16).bfloat16().transpose(1, 2).requires_grad_() for n in shapes]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs)
    plain = attend(*inputs)
    assert torch.equal(compiled, plain)
    slope = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad(compiled, inputs, slope), torch.autograd.grad(plain, inputs, slope), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_training_it_is_torchs(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 3, 20, 16).to(dtype)
    assert torch.equal(attend(q, k, v), functional.scaled_dot_product_attention(q, k, v))
    with torch.no_grad():
        assert torch.equal(attend(q.requires_grad_(), k, v), functional.scaled_dot_product_attention(q, k, v))


class Copies(TorchDispatchMode):
    """Counts the bytes that copies write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if (name := function.overloadpacket.__name__) in ("stack", "clone", "copy_", "cat"):
            self.written[name] += result.nbytes
        return result


@pytest.mark.parametrize("queries", [None, 6])
def test_gradients_of_q_k_and_v_are_copied_once(queries: int | None) -> None:
    """Timm's own attention gives the expected gradient. A stack puts the three gradients side by side."""
    torch.manual_seed(0)
    attention, theirs = (kind(32, num_heads=4, qkv_bias=True) for kind in (JointAttention, Attention))
    theirs.load_state_dict(attention.state_dict(), strict=False)
    x = torch.randn(2, 10, 32, requires_grad=True)
    found = attention(x, queries)
    with Copies() as copies:
        found.sum().backward()
    parts = 3 if queries is None else 2
    assert copies.written["stack"] == 4 * 2 * 10 * 32 * parts
    assert copies.written["clone"] + copies.written["copy_"] < copies.written["stack"]
    ours, x.grad = x.grad, None
    theirs(x)[:, 0 if queries is None else -queries :].sum().backward()
    assert torch.allclose(ours, x.grad, atol=1e-5)
