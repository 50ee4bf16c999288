"""Targets of the decoder heads: frames and motion of the masked cubes (tubelets; paper section 3).

Only the bytes of masked cubes are converted to floats. Values stay in grey levels (0 to 255) until the last operation
scales them. A target then takes one pass over memory for the conversion, two for the statistics and two to apply them.

Why motion has a separate epsilon: a cube's target is (x - mean) / (std + eps). The motion of a static cube is sensor
and compression noise. Divided by its standard deviation, this noise would have unit variance and count as much in the
loss as real motion. The table gives the standard deviation of the absolute difference in [0, 1], measured on 57 real
clips of 16 frames at 224 pixels, stored as JPEG of quality 90, in cubes of 2 x 16 x 16. A cube is "static" if the
optical flow is below 0.1 pixels in 95 % of the cube, and "moving" if the mean flow exceeds 1 pixel.

    ==================  ============================  ============================
    source              static: median (5 to 95 %)    moving: median (5 to 95 %)
    ==================  ============================  ============================
    fixed cameras       0.0027 (0 to 0.0069)          0.052 (0.005 to 0.147)
    K400, UCF, HMDB     0.0034 (0 to 0.0155)          0.071 (0.012 to 0.225)
    SSv2                0.0046 (0.0020 to 0.0234)     0.084 (0.012 to 0.159)
    ==================  ============================  ============================

The best eps maximises the target's mean square in moving cubes minus its mean square in static cubes. This gap is
largest at an eps of 0.004, 0.005 and 0.009 for the three sources, and at 0.006 for their mean. With 0.006 the mean
squares (moving, static) are (0.73, 0.10), (0.79, 0.17) and (0.81, 0.24); with 1e-6 they are (1, 1) in every row. Hence
``target.motion_eps`` is 0.006, which is 1.5 grey levels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from motionmae.config import Config, TargetConfig
from motionmae.errors import UserError
from motionmae.models.cubes import cut_patches, frames_of, gather_cubes, gather_patches

GREY_LEVELS = 255  # grey levels per unit of pixels in [0, 1], the scale of targets and epsilons


class RawTarget(NamedTuple):
    """Target of a decoder head before normalisation."""

    values: Tensor
    """float32 (B, M, L). ``values / unit`` is pixels in [0, 1], or flow in pixels."""
    eps: float  # epsilon that is added to a cube's standard deviation, in the scale of ``values / unit``
    unit: int  # 255 for frames and their differences; 1 for optical flow
    channels: int  # values per pixel: 3, or 2 for optical flow
    std: float  # constant divisor that is used if ``target.normalize`` is off
    per_clip: bool = False  # normalise by statistics of all given cubes of a clip instead of each cube


class Target(NamedTuple):
    """Target of a decoder head. ``values * scale + mean`` per cube and channel gives pixels."""

    values: Tensor  # float32 (B, M, L)
    mean: Tensor | None
    """Mean of the true cube in [0, 1], float32 (B, M, channels), or of the clip, (B, 1, channels); None if targets are
    not normalised."""
    scale: Tensor | float
    """Standard deviation of the true cube or clip in [0, 1] plus epsilon, in the shape of ``mean``; a constant if
    targets are not normalised."""

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Undo the normalisation of a prediction (B, M, L) with mean and standard deviation of the true cubes."""
        if self.mean is None or not isinstance(self.scale, Tensor):
            return prediction * self.scale
        per_pixel = prediction.unflatten(2, (-1, self.mean.shape[2]))  # (B, M, pixels, channels)
        return (per_pixel * self.scale[:, :, None] + self.mean[:, :, None]).flatten(2)


def output_sizes(config: Config) -> dict[str, int]:
    """Return the number of values per cube for each trained head: ``space`` predicts frames, ``time`` motion."""
    pixels = config.clip.cube_pixels // 3
    sizes = {"space": 3 * pixels} if config.target.has_frame else {}
    return sizes | ({"time": _motion_channels(config.target) * pixels} if config.target.has_motion else {})


def make_targets(config: Config, patches: Tensor, cubes: Tensor, flow: Tensor | None = None) -> dict[str, Target]:
    """Return the targets of each trained head for the cubes int64 (B, M).

    ``patches``, uint8 (B, T, P, R), come from :func:`motionmae.models.cubes.cut_patches`. ``flow``, (B, T, H, W, 2), is
    required if ``target.motion_source=flow``.
    """
    return {
        name: _finish(raw, config.target.normalize, config.clip.cube_size)
        for name, raw in raw_targets(config, patches, cubes, flow).items()
    }


def raw_targets(config: Config, patches: Tensor, cubes: Tensor, flow: Tensor | None = None) -> dict[str, RawTarget]:
    """Return the targets before normalisation. The arguments are those of :func:`make_targets`."""
    target, clip = config.target, config.clip
    raw: dict[str, RawTarget] = {}
    if target.has_frame:
        frames = gather_cubes(patches, cubes, clip.cube_frames).float()
        raw["space"] = RawTarget(frames, target.frame_eps, GREY_LEVELS, 3, target.frame_std)
    if target.has_motion:
        if target.motion_source == "flow":
            if flow is None:
                raise UserError(
                    "target.motion_source=flow needs optical flow with every clip: make the shards with --flow"
                )
            motion, unit = gather_cubes(cut_patches(flow, clip.cube_size), cubes, clip.cube_frames).float(), 1
        else:
            motion, unit = motion_cubes(patches, cubes, clip.cube_frames, target), GREY_LEVELS
        channels, per_clip = _motion_channels(target), target.motion_norm == "clip"
        raw["time"] = RawTarget(motion, target.motion_eps, unit, channels, target.motion_std, per_clip)
    return raw


def _motion_channels(target: TargetConfig) -> int:
    return 2 if target.motion_source == "flow" else 3


def _finish(raw: RawTarget, normalize: bool, cube_size: int) -> Target:
    """Normalise or scale a raw target in place."""
    values, eps, unit, channels, constant, per_clip = raw
    if not normalize:
        return Target(values.mul_(1 / (unit * constant)), None, constant)
    groups = values.flatten(1)[:, None] if per_clip else values  # a clip is normalised like one cube of many frames
    mean, std = normalize_(groups, eps * unit, cube_size * channels, channels)
    return Target(values, mean / unit, std / unit + eps)


def motion_cubes(patches: Tensor, cubes: Tensor, cube_frames: int, target: TargetConfig) -> Tensor:
    """Return the temporal difference of cubes in grey levels (paper section 3; granularity: Table 5c).

    Motion at frame t is the absolute difference of the frames t - granularity and t, or, if signed, the earlier minus
    the later frame. The first ``granularity`` frames have no earlier frame and repeat the first difference, so that
    motion has as many frames as the clip. Patches are uint8 (B, T, P, R), cubes int64 (B, M), and the result is float32
    (B, M, cube_frames * R).
    """
    positions, granularity = cubes % patches.shape[2], target.motion_granularity
    later = frames_of(cubes, patches.shape[2], cube_frames).clamp(min=granularity)
    current = gather_patches(patches, later, positions)
    previous = gather_patches(patches, later - granularity, positions)
    if target.motion_sign == "abs":  # uint8 is exact here and needs a quarter of the memory traffic of float32
        return (torch.maximum(current, previous) - torch.minimum(current, previous)).float()
    return previous.float().sub_(current)


def normalize_(values: Tensor, eps: float, line: int, channels: int) -> tuple[Tensor, Tensor]:
    """Normalise each cube per channel in place: (x - mean) / (std + eps), with the unbiased variance as in VideoMAE.

    ``values`` are (B, M, L), L = pixels * channels with channels innermost; ``eps`` has their unit. ``line`` is the
    number of values in one pixel row of a cube, and only affects the speed of the sums. Return the mean and the
    standard deviation, (B, M, channels) each.
    """
    batch, cubes, length = values.shape
    pixels = length // channels
    lines = values.view(batch * cubes, -1, line)
    repeat = line // channels

    def per_channel(x: Tensor) -> Tensor:
        # sum over pixel rows first: a reduction over an inner dimension of 3 is many times slower on a CPU
        return x.sum(1).view(-1, repeat, channels).sum(1)

    mean = per_channel(lines) / pixels  # (B * M, channels)
    lines.sub_(mean.repeat(1, repeat)[:, None])
    std = (per_channel(lines.square()) / (pixels - 1)).sqrt_()
    lines.mul_((std + eps).reciprocal_().repeat(1, repeat)[:, None])
    return mean.view(batch, cubes, channels), std.view(batch, cubes, channels)


def loss_of(prediction: Tensor, target: Tensor, kind: str, counted: Tensor | None = None) -> Tensor:
    """Return the mean loss, in float32, of predictions for targets, (B, M, L) each; ``kind`` is that of Table 5f.

    If ``counted``, bool (B, M), marks the cubes that count, the loss is the mean over the counted cubes of each clip,
    then over clips, and does not depend on which rank has which clip. (VideoMAEv2 takes the mean over all counted cubes
    of the batch.) A clip without counted cubes has loss 0.
    """
    losses = {"mse": functional.mse_loss, "l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}
    loss = losses[kind](prediction.to(target.dtype), target, reduction="mean" if counted is None else "none")
    if counted is None:
        return loss
    return ((loss.mean(2) * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()
