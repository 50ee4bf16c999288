"""MotionMAE: one encoder over the visible cubes, a space head for their pixels and a time head for their motion.

VideoMAE is the same model with ``target.kind=frame`` and tube masks; MAE-ST with ``target.kind=frame`` and global ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.models.cubes import cut_patches, gather_cubes
from motionmae.models.masking import Mask, draw_masks
from motionmae.models.targets import GREY_LEVELS, frame_cubes, loss_of, motion_cubes, normalize_
from motionmae.models.vit import Decoder, Encoder

FLOW_CHANNELS = 2
"""Optical flow has a horizontal and a vertical part."""


class Losses(NamedTuple):
    """0-dim float32 tensors; a head that is not trained has loss 0."""

    total: Tensor
    """``target.frame_weight * space + target.motion_weight * time``: what is minimised."""
    space: Tensor
    """Mean loss of the space head over masked cubes."""
    time: Tensor
    """Mean loss of the time head over masked cubes."""


class Target(NamedTuple):
    """What one head must rebuild, and how to get from there to pixels: ``value * scale + mean`` per cube and channel."""

    values: Tensor
    """float32 (B, M, L)."""
    mean: Tensor | None
    """float32 (B, M, C), of the true cube, in [0, 1]; None where targets are not normalised."""
    scale: Tensor | None
    """float32 (B, M, C), the true cube's standard deviation plus epsilon, in [0, 1]."""


class MotionMAE(nn.Module):
    """The pre-training model. Its loss depends on its weights, the clips and their seeds, and on nothing else."""

    def __init__(self, config: Config):
        """Make the model with only the heads that ``config.target.kind`` needs; draws from torch's global generator.

        Raises:
            UserError: if a width is not a multiple of its heads.
        """
        super().__init__()
        self.config = config
        clip, target = config.clip, config.target
        self.channels = {"space": 3, "time": FLOW_CHANNELS if target.motion_source == "flow" else 3}
        trained = [name for name, on in (("space", target.has_frame), ("time", target.has_motion)) if on]
        outputs = {name: clip.cube_pixels // 3 * self.channels[name] for name in trained}
        self.encoder = Encoder(clip, config.model)
        if config.model.decoder == "shared":
            self.decoders = nn.ModuleDict({"shared": Decoder(clip, config.model, outputs)})
        else:
            self.decoders = nn.ModuleDict({name: Decoder(clip, config.model, {name: outputs[name]}) for name in trained})

    def forward(self, clips: Tensor, seeds: Tensor, flow: Tensor | None = None) -> Losses:
        """Hide cubes, rebuild them, compare.

        Args:
            clips: uint8 (B, T, H, W, 3).
            seeds: int64 (B,), on the same device; each clip's mask follows from its seed alone.
            flow: (B, T, H, W, 2) of any type, in pixels; the time head's target if ``target.motion_source=flow``.
        """
        mask = self.draw_masks(seeds)
        patches = cut_patches(clips, self.config.clip.cube_size)
        with torch.no_grad():
            targets = self.targets(patches, mask.masked, flow)
        predictions = self.predict(patches, mask)
        target = self.config.target
        losses = {name: loss_of(predictions[name], targets[name].values, target.loss) for name in predictions}
        space, time = (losses.get(name, clips.new_zeros((), dtype=torch.float32)) for name in ("space", "time"))
        return Losses(target.frame_weight * space + target.motion_weight * time, space, time)

    def draw_masks(self, seeds: Tensor, ratio: float | None = None) -> Mask:
        """Return the masks of ``seeds``, with ``mask.ratio`` unless another is given."""
        clip, mask = self.config.clip, self.config.mask
        chosen = mask.ratio if ratio is None else ratio
        return draw_masks(seeds, kind=mask.kind, ratio=chosen, slots=clip.slots, places=clip.cubes_per_slot)

    def predict(self, patches: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Return each trained head's prediction of the masked cubes: patches (B, T, P, R) -> (B, M, L)."""
        encoded = self.encoder(patches, mask.visible)
        predictions: dict[str, Tensor] = {}
        for decoder in self.decoders.values():
            predictions.update(decoder(encoded, mask))
        return predictions

    def targets(self, patches: Tensor, cubes: Tensor, flow: Tensor | None = None) -> dict[str, Target]:
        """Return the targets of ``cubes`` (int64 (B, M)) for each trained head, in float32."""
        target, clip = self.config.target, self.config.clip
        wanted: dict[str, Target] = {}
        if target.has_frame:
            values = frame_cubes(patches, cubes, clip.cube_frames)
            wanted["space"] = self._finish(values, target.frame_eps, "space", GREY_LEVELS)
        if target.has_motion and target.motion_source == "flow":
            assert flow is not None, "target.motion_source=flow needs clips with flow"
            values = gather_cubes(cut_patches(flow, clip.cube_size), cubes, clip.cube_frames).float()
            wanted["time"] = self._finish(values, target.motion_eps, "time", 1)
        elif target.has_motion:
            values = motion_cubes(
                patches, cubes, clip.cube_frames, granularity=target.motion_granularity, sign=target.motion_sign
            )
            wanted["time"] = self._finish(values, target.motion_eps, "time", GREY_LEVELS)
        return wanted

    def _finish(self, values: Tensor, eps: float, head: str, unit: int) -> Target:
        """Bring ``values``, in 1 / ``unit``, to what the head must give: normalised, or in units of 1."""
        if not self.config.target.normalize:
            return Target(values.mul_(1 / unit), None, None)
        channels = self.channels[head]
        mean, std = normalize_(values, eps * unit, self.config.clip.cube_size * channels, channels)
        return Target(values, mean / unit, std / unit + eps)


def build_motionmae(config: Config) -> MotionMAE:
    """Make the model with initial weights that follow from ``config.seed`` alone; no generator outside is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MotionMAE(config)


def no_decay(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay: one-dimensional ones (biases, norms, mask tokens) and tables.

    Ask before ZeRO-3 takes the model over: it flattens every parameter to one dimension.
    """
    return {name for name, weight in model.named_parameters() if weight.ndim < 2 or name.endswith("position.table")}
