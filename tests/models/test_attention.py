import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from motionmae.models.vit import attend


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
