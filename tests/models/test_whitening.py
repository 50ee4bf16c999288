import pytest
import torch

from motionmae.config import ClipConfig
from motionmae.models.whitening import NEIGHBOUR_CORRELATION, whiten_

CLIP = ClipConfig(frames=4, size=8, cube_frames=2, cube_size=4)  # 96 pixels in a cube


def correlated_pixels(clip: ClipConfig) -> torch.Tensor:
    """Return the covariance (cube pixels, cube pixels) of the process, pixel by pixel."""
    axes = (clip.cube_frames, clip.cube_size, clip.cube_size)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (*axes, 3)), indexing="ij"), -1).view(-1, 4)
    distance = (places[:, None] - places).abs()
    steps = distance[..., :3].sum(-1) + (distance[..., 3] > 0)
    return NEIGHBOUR_CORRELATION ** steps.double()


@pytest.mark.parametrize("width", [48, 96, 250])
def test_tokens_have_unit_variance(width: int):
    weight = torch.empty(width, CLIP.cube_pixels)
    whiten_(weight, CLIP)
    tokens = weight.double() @ correlated_pixels(CLIP) @ weight.double().T
    assert tokens.diagonal().mean().item() == pytest.approx(1, rel=0.2)


def test_half_whitening_takes_the_root_of_the_spread_of_variances():
    weight = torch.empty(CLIP.cube_pixels, CLIP.cube_pixels)
    whiten_(weight, CLIP)
    pixels = correlated_pixels(CLIP)
    before, after = (torch.linalg.eigvalsh(m) for m in (pixels, weight.double() @ pixels @ weight.double().T))
    assert (after[-1] / after[-10]).item() == pytest.approx((before[-1] / before[-10]).sqrt().item(), rel=0.1)


def test_weights_follow_from_the_seed():
    weights = [torch.empty(48, CLIP.cube_pixels) for _ in range(3)]
    for seed, weight in zip((0, 0, 1), weights, strict=True):
        torch.manual_seed(seed)
        whiten_(weight, CLIP)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
