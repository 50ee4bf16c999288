import pytest
import torch

from motionmae.config import ClipConfig
from motionmae.models.whitening import whiten_

CLIP = ClipConfig(frames=4, size=8, cube_frames=2, cube_size=4)  # 96 pixels in a cube


def correlated_pixels(clip: ClipConfig) -> torch.Tensor:
    """Return the covariance (cube pixels, cube pixels) of the process, pixel by pixel."""
    axes = (clip.cube_frames, clip.cube_size, clip.cube_size)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (*axes, 3)), indexing="ij"), -1).view(-1, 4)
    distance = (places[:, None] - places).abs()
    steps = distance[..., :3].sum(-1) + (distance[..., 3] > 0)
    return 0.96 ** steps.double()  # measured on 128 real clips: 0.953 to 0.967


@pytest.mark.parametrize("width", [48, 96, 250])
def test_tokens_have_unit_variance(width: int):
    weight = torch.empty(width, CLIP.cube_pixels)
    whiten_(weight, CLIP)
    tokens = weight.double() @ correlated_pixels(CLIP) @ weight.double().T
    assert tokens.diagonal().mean().item() == pytest.approx(1, rel=0.2)


def test_a_square_projection_is_a_rotation_of_half_whitened_pixels():
    """W^T W does not depend on the rotation: the pixels' covariance S, plus noise of 3 grey levels, to the power -1/2,
    scaled so that a channel has unit variance.
    """
    weight = torch.empty(CLIP.cube_pixels, CLIP.cube_pixels)
    whiten_(weight, CLIP)
    variances, components = torch.linalg.eigh(correlated_pixels(CLIP))
    gains = (variances + 0.003) ** -0.5
    gains /= (variances * gains).mean()
    torch.testing.assert_close(
        weight.double().T @ weight.double(), (components * gains) @ components.T, atol=1e-4, rtol=1e-4
    )


def test_weights_follow_from_the_seed():
    weights = [torch.empty(48, CLIP.cube_pixels) for _ in range(3)]
    for seed, weight in zip((0, 0, 1), weights, strict=True):
        torch.manual_seed(seed)
        whiten_(weight, CLIP)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
