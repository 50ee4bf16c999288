"""Initial cube projection that reads motion as well as appearance."""

from functools import reduce

import torch
from torch import Tensor, nn

from motionmae.config import ClipConfig

NEIGHBOUR_CORRELATION = 0.96
"""Correlation of neighbouring pixels along time, row and column, and of two colours of a pixel. Measured on 128 real
clips of 16 x 64 x 64 with every second frame: 0.964 along time, 0.953 along a column, 0.965 along a row, 0.967 between
colours."""
FLOOR = 0.003
"""Added to every eigenvalue. Variance of noise of 3 grey levels, in normalised pixels."""


@torch.no_grad()
def whiten_(weight: Tensor, clip: ClipConfig) -> None:
    """Initialise a cube projection (width, cube pixels) with orthogonal rows after half-whitening of the pixels.

    A random projection of a video cube shows its brightness: the difference of its two frames has 2 % of the variance
    of their mean. The encoder then hardly sees motion, and the time head has nothing to learn from. Whitening divides
    each principal component of the pixels by its standard deviation, and half-whitening by the square root of the
    standard deviation. The motion of a cube then has a share of its token that the first layers can read, and
    appearance keeps most of it. The components are those of an autoregressive process with
    :data:`NEIGHBOUR_CORRELATION`, and need no data.

    With a larger width than pixels, the rows are orthonormal only in blocks of the number of pixels.
    """
    axes = (clip.cube_frames, clip.cube_size, clip.cube_size)
    eigen = [torch.linalg.eigh(_correlations(length)) for length in axes]
    eigen.append(torch.linalg.eigh(torch.full((3, 3), NEIGHBOUR_CORRELATION).double().fill_diagonal_(1)))
    variances = reduce(torch.kron, [values for values, _ in eigen])  # (cube pixels,), order (p0 p1 p2 c)
    components = reduce(torch.kron, [vectors for _, vectors in eigen])
    gains = (variances + FLOOR) ** -0.25
    gains /= (variances * gains.square()).mean().sqrt()  # a token has unit variance in every channel
    rotation = torch.empty_like(weight)
    for rows in rotation.split(weight.shape[1]):
        nn.init.orthogonal_(rows)
    weight.copy_(rotation.double() @ (components * gains) @ components.T)


def _correlations(length: int) -> Tensor:
    """Return the correlations (length, length) of an autoregressive process of first order."""
    positions = torch.arange(length, dtype=torch.float64)
    return NEIGHBOUR_CORRELATION ** (positions[:, None] - positions).abs()
