"""What the heads must rebuild: frames and motion of the masked cubes, and only of those (paper section 3).

Bytes are gathered first and become floats only then. Values stay in grey levels (0 to 255) until the last operation
scales them, so a target costs one pass for the conversion, two for the statistics and two for applying them.

Why motion has its own epsilon. A cube's target is (x - mean) / (std + eps). The motion of a static cube is sensor and
compression noise; divided by its own deviation it would be noise of unit variance, as loud in the loss as real motion.
Measured on 48 real clips of 16 frames at 224 pixels, stored as JPEG of quality 90 (cubes of 2 x 16 x 16; static: optical
flow below 0.1 pixels in 95 % of the cube; moving: mean flow above 1 pixel), deviation of |difference| in [0, 1]:

    ==================  ============================  ============================
    source              static: median (5 to 95 %)    moving: median (5 to 95 %)
    ==================  ============================  ============================
    fixed cameras       0.0027 (0 to 0.0069)          0.052 (0.005 to 0.147)
    K400, UCF, HMDB     0.0034 (0 to 0.0155)          0.071 (0.012 to 0.225)
    SSv2                0.0046 (0.0020 to 0.0234)     0.084 (0.012 to 0.159)
    ==================  ============================  ============================

The best eps leaves moving cubes the most variance over static ones. The gap (mean square of the target, moving minus
static) is widest at 0.004, 0.005 and 0.009 for the three, and at 0.006 for their mean: 0.73 against 0.10, 0.79 against
0.17, 0.81 against 0.24 there, while 1e-6 gives 1 against 1 in every row. Hence ``target.motion_eps`` = 0.006, 1.5 grey
levels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from motionmae.models.cubes import frames_of, gather_cubes, gather_patches

GREY_LEVELS = 255
"""Frame and motion targets are pixels in [0, 1], and their epsilons are in that unit."""


def frame_cubes(patches: Tensor, cubes: Tensor, cube_frames: int) -> Tensor:
    """Return the cubes' pixels in grey levels: uint8 patches (B, T, P, R), int64 (B, M) -> float32 (B, M, p0 * R)."""
    return gather_cubes(patches, cubes, cube_frames).float()


def motion_cubes(patches: Tensor, cubes: Tensor, cube_frames: int, *, granularity: int, sign: str) -> Tensor:
    """Return the cubes' temporal difference in grey levels (paper section 3; Table 5c for the granularity).

    Motion at frame t joins the frames t - granularity and t. The first ``granularity`` frames have no such partner and
    repeat the first difference, so that motion has as many frames as the clip.

    Args:
        patches: uint8 (B, T, P, R).
        cubes: int64 (B, M).
        cube_frames: frames of a cube, p0.
        granularity: distance of the two frames, in clip frames.
        sign: ``abs``, or ``signed`` for previous minus current.

    Returns:
        float32 (B, M, p0 * R).
    """
    places = cubes % patches.shape[2]
    later = frames_of(cubes, patches.shape[2], cube_frames).clamp(min=granularity)
    current = gather_patches(patches, later, places)
    previous = gather_patches(patches, later - granularity, places)
    if sign == "abs":  # exact in bytes, a quarter of the memory traffic of floats
        return (torch.maximum(current, previous) - torch.minimum(current, previous)).float()
    return previous.float().sub_(current)


def normalize_(values: Tensor, eps: float, line: int, channels: int) -> tuple[Tensor, Tensor]:
    """Normalise each cube per channel, in place: (x - mean) / (std + eps) with the unbiased variance, as VideoMAE.

    Args:
        values: (B, M, L), L = pixels * channels with channels innermost.
        eps: in the unit of ``values``.
        line: values of one line of a cube, p2 * channels; how the sums are blocked, not what they are.
        channels: values of a pixel.

    Returns:
        Mean and standard deviation, (B, M, channels) each, by which the step can be undone.
    """
    batch, cubes, length = values.shape
    pixels = length // channels
    lines = values.view(batch * cubes, -1, line)
    repeat = line // channels

    def per_channel(x: Tensor) -> Tensor:
        # lines are summed first: a reduction with three values innermost is many times slower on a CPU
        return x.sum(1).view(-1, repeat, channels).sum(1)

    mean = per_channel(lines) / pixels  # (B * M, channels)
    lines.sub_(mean.repeat(1, repeat)[:, None])
    std = (per_channel(lines.square()) / (pixels - 1)).sqrt_()
    lines.mul_((std + eps).reciprocal_().repeat(1, repeat)[:, None])
    return mean.view(batch, cubes, channels), std.view(batch, cubes, channels)


def loss_of(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return the mean loss over all values, in float32: ``mse``, ``l1`` or ``smooth_l1`` (Table 5f)."""
    losses = {"mse": functional.mse_loss, "l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}
    return losses[kind](prediction.to(target.dtype), target)
