"""What the heads must rebuild: frames and motion of the masked cubes, and only of those (paper section 3).

Bytes are gathered first and become floats only then. Values stay in grey levels (0 to 255) until the last operation
scales them, so a target costs one pass for the conversion, two for the statistics and two for applying them.

Why motion has its own epsilon. A cube's target is (x - mean) / (std + eps). The motion of a static cube is sensor and
compression noise; divided by its own deviation it would be noise of unit variance, as loud in the loss as real motion.
Measured on 57 real clips of 16 frames at 224 pixels, stored as JPEG of quality 90, in cubes of 2 x 16 x 16: standard
deviation of the absolute difference in [0, 1]. Static means optical flow below 0.1 pixels in 95 % of the cube; moving,
a mean flow above 1 pixel.

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

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from motionmae.config import Config, TargetConfig
from motionmae.errors import UserError
from motionmae.models.cubes import cut_patches, frames_of, gather_cubes, gather_patches

GREY_LEVELS = 255
"""Frame and motion targets are pixels in [0, 1], and their epsilons are in that unit."""


class RawTarget(NamedTuple):
    """What a head rebuilds, before normalisation."""

    values: Tensor
    """float32 (B, M, L), in 1 / ``unit``."""
    eps: float
    """Added to a cube's standard deviation, in units of 1."""
    unit: int
    """Grey levels of frames and their differences; 1 of optical flow."""
    channels: int
    """Values of a pixel: 3, or 2 of optical flow."""
    std: float
    """What values are divided by in place of the cube's standard deviation, where cubes are not normalised."""


class Target(NamedTuple):
    """What a head must give, and the way from there to pixels: ``values * scale + mean`` per cube and channel."""

    values: Tensor
    """float32 (B, M, L)."""
    mean: Tensor | None
    """float32 (B, M, channels), of the true cube, in [0, 1]; None where targets are not normalised."""
    scale: Tensor | float
    """float32 (B, M, channels), the true cube's standard deviation plus epsilon, in [0, 1]; one number where targets
    are not normalised."""

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Undo the normalisation of a prediction (B, M, L) with the true cube's mean and deviation."""
        if self.mean is None or not isinstance(self.scale, Tensor):
            return prediction * self.scale
        per_pixel = prediction.unflatten(2, (-1, self.mean.shape[2]))  # (B, M, pixels, channels)
        return (per_pixel * self.scale[:, :, None] + self.mean[:, :, None]).flatten(2)


def output_sizes(config: Config) -> dict[str, int]:
    """Return the values of a cube that each trained head gives: ``space`` frames, ``time`` motion."""
    pixels = config.clip.cube_pixels // 3
    sizes = {"space": 3 * pixels} if config.target.has_frame else {}
    return sizes | ({"time": _motion_channels(config.target) * pixels} if config.target.has_motion else {})


def make_targets(config: Config, patches: Tensor, cubes: Tensor, flow: Tensor | None = None) -> dict[str, Target]:
    """Return what each trained head must give for some cubes.

    Args:
        config: says which targets there are.
        patches: uint8 (B, T, P, R) of :func:`motionmae.models.cubes.cut_patches`.
        cubes: int64 (B, M).
        flow: (B, T, H, W, 2), read if ``target.motion_source=flow``.

    Raises:
        UserError: if flow is wanted and there is none.
    """
    return {
        name: _finish(raw, config.target.normalize, config.clip.cube_size)
        for name, raw in raw_targets(config, patches, cubes, flow).items()
    }


def raw_targets(config: Config, patches: Tensor, cubes: Tensor, flow: Tensor | None = None) -> dict[str, RawTarget]:
    """Return the same before normalisation; arguments as of :func:`make_targets`."""
    target, clip = config.target, config.clip
    raw: dict[str, RawTarget] = {}
    if target.has_frame:
        frames = gather_cubes(patches, cubes, clip.cube_frames).float()
        raw["space"] = RawTarget(frames, target.frame_eps, GREY_LEVELS, 3, target.frame_std)
    if target.has_motion:
        if target.motion_source == "flow":
            if flow is None:
                raise UserError("target.motion_source=flow needs optical flow with each clip: make shards with --flow")
            motion, unit = gather_cubes(cut_patches(flow, clip.cube_size), cubes, clip.cube_frames).float(), 1
        else:
            motion, unit = motion_cubes(patches, cubes, clip.cube_frames, target), GREY_LEVELS
        raw["time"] = RawTarget(motion, target.motion_eps, unit, _motion_channels(target), target.motion_std)
    return raw


def _motion_channels(target: TargetConfig) -> int:
    return 2 if target.motion_source == "flow" else 3


def _finish(raw: RawTarget, normalize: bool, cube_size: int) -> Target:
    """Bring raw values to what the head must give, in place."""
    values, eps, unit, channels, constant = raw
    if not normalize:
        return Target(values.mul_(1 / (unit * constant)), None, constant)
    mean, std = normalize_(values, eps * unit, cube_size * channels, channels)
    return Target(values, mean / unit, std / unit + eps)


def motion_cubes(patches: Tensor, cubes: Tensor, cube_frames: int, target: TargetConfig) -> Tensor:
    """Return the cubes' temporal difference in grey levels (paper section 3; Table 5c for the granularity).

    Motion at frame t joins the frames t - granularity and t: their absolute difference, or previous minus current if
    it is signed. The first ``granularity`` frames have no such partner and repeat the first difference, so that motion
    has as many frames as the clip.

    Args:
        patches: uint8 (B, T, P, R).
        cubes: int64 (B, M).
        cube_frames: frames of a cube, p0.
        target: its ``motion_granularity`` and ``motion_sign``.

    Returns:
        float32 (B, M, p0 * R).
    """
    places, granularity = cubes % patches.shape[2], target.motion_granularity
    later = frames_of(cubes, patches.shape[2], cube_frames).clamp(min=granularity)
    current = gather_patches(patches, later, places)
    previous = gather_patches(patches, later - granularity, places)
    if target.motion_sign == "abs":  # exact in bytes, a quarter of the memory traffic of floats
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


def loss_of(prediction: Tensor, target: Tensor, kind: str, counted: Tensor | None = None) -> Tensor:
    """Return the mean loss over all values, in float32.

    Args:
        prediction: (B, M, L).
        target: float32 (B, M, L).
        kind: ``mse``, ``l1`` or ``smooth_l1`` (Table 5f).
        counted: bool (B, M): the cubes that count; the loss is then the mean over a clip's, and over clips, so that it
            does not matter how clips are shared out to ranks. VideoMAEv2 takes the mean over a batch's. A clip without
            any has loss 0.
    """
    losses = {"mse": functional.mse_loss, "l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}
    loss = losses[kind](prediction.to(target.dtype), target, reduction="mean" if counted is None else "none")
    if counted is None:
        return loss
    return ((loss.mean(2) * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()
