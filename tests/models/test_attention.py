import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from motionmae.models import attention
from motionmae.models.attention import attend


def _trained(dtype: torch.dtype, asking: int, asked: int) -> list[Tensor]:
    """The result and the gradients of q, k and v, which are laid out as a projection gives them."""
    torch.manual_seed(0)
    q, k, v, slope = (torch.randn(2, n, 3, 16).bfloat16().to(dtype) for n in (asking, asked, asked, asking))
    inputs = [x.transpose(1, 2).requires_grad_() for x in (q, k, v)]
    attended = checkpoint(attend, *inputs, use_reentrant=False)
    attended.backward(slope.transpose(1, 2))
    return [x.double() for x in (attended.detach(), *(x.grad for x in inputs)) if x is not None]


@pytest.mark.parametrize("asking", [40, 33])
@pytest.mark.parametrize("at_once", [1, 4 * 33 * 40, 1_000_000])
def test_training_in_bfloat16_is_that_in_double_precision(
    asking: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_WEIGHTS_AT_ONCE", at_once)
    found = _trained(torch.bfloat16, asking, 40)
    assert len(found) == 4
    for ours, true in zip(found, _trained(torch.float64, asking, 40), strict=True):
        assert (ours - true).norm() < 0.01 * true.norm()


def test_training_in_bfloat16_keeps_the_weights_once() -> None:
    kept: list[int] = []
    q = torch.randn(1, 2, 50, 16, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend(q, q, q)
    assert sum(kept) == 3 * q.numel() + 2 * 50 * 50


@pytest.mark.parametrize("clips", [1, 2])
def test_its_operators_are_what_they_tell_torchs_compiler(clips: int) -> None:
    """Torch's own check: schemas, shapes and layouts without data, gradients, and all of it traced."""
    q, k, v = (torch.randn(clips, n, 3, 16).bfloat16().transpose(1, 2).requires_grad_() for n in (33, 40, 40))
    torch.library.opcheck(attention._products, (q, k, v))
    _, weights = attention._products(q, k, v)
    given = [x.detach() for x in (torch.randn_like(q), q, k, v, weights)]
    torch.library.opcheck(attention._products_backward, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_training_it_is_torchs(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 3, 20, 16).to(dtype)
    assert torch.equal(attend(q, k, v), functional.scaled_dot_product_attention(q, k, v))
    with torch.no_grad():
        assert torch.equal(attend(q.requires_grad_(), k, v), functional.scaled_dot_product_attention(q, k, v))
