"""MotionMAE: an encoder of the visible cubes (tubelets) and two decoder heads that predict the masked cubes.

The pixel head (the paper's space head) predicts frames, the motion head (the paper's time head) predicts motion. With
``target.kind=frame`` the model is VideoMAE if masks are tubes, and MAE-ST if masks are global.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.cubes import all_cubes, cut_patches, paste_cubes
from motionmae.models.masking import Mask, draw_masks, running_cells
from motionmae.models.targets import GREY_LEVELS, loss_of, make_targets, output_sizes, raw_targets
from motionmae.models.vit import Decoder, Encoder


class Losses(NamedTuple):
    """Losses of a micro-batch as 0-dim float32 tensors. The loss of an untrained head is 0."""

    total: Tensor  # the training loss: ``target.frame_weight * space + target.motion_weight * time``
    space: Tensor  # mean loss of the space head over masked cubes
    time: Tensor  # mean loss of the time head over masked cubes


class Reconstruction(NamedTuple):
    """The rows of the paper's Figure 3 as clips: float (B, T, H, W, 3). Predictions may lie slightly outside [0, 1].

    Visible cubes show the ground truth in every row. Optical flow and signed motion may be negative.
    """

    clip: Tensor  # the input, in [0, 1]
    masked: Tensor  # the input with masked cubes in grey, 0.5
    space: Tensor | None  # the space head's prediction of masked cubes; None if the model has no space head
    motion: Tensor | None
    """True motion: difference of pixels in [0, 1], or flow (B, T, H, W, 2) in pixels; None without a time head."""
    time: Tensor | None
    """The time head's prediction of the motion of masked cubes; None if the model has no time head."""
    mask: Tensor  # bool (B, temporal patches, grid size, grid size): True where a cube is masked
    true_statistics: bool
    """Whether the true mean and standard deviation of each masked cube undo the normalisation of the predictions."""


class MotionMAE(nn.Module):
    """Pre-training model. The loss depends only on the weights, the clips and the seeds of the clips."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        clip, model, outputs = config.clip, config.model, output_sizes(config)
        shared = model.decoder == "shared"
        trunks = {"shared": outputs} if shared else {name: {name: values} for name, values in outputs.items()}
        self.encoder = Encoder(clip, model)
        self.decoders = nn.ModuleDict({name: Decoder(clip, model, heads) for name, heads in trunks.items()})

    def forward(self, clips: Tensor, seeds: Tensor, flow: Tensor | None = None) -> Losses:
        """Mask the clips, predict the masked cubes, and return the losses.

        Args:
            clips: uint8 (B, T, H, W, 3).
            seeds: int64 (B,), on the device of the clips. A clip's seed determines its mask.
            flow: (B, T, H, W, 2) of any dtype, in pixels; the time head's target if ``target.motion_source=flow``.
        """
        mask, target = self.draw_masks(seeds), self.config.target
        patches = cut_patches(clips, self.config.clip.cube_size)
        query, counted = self.draw_queries(seeds, mask)
        with torch.no_grad():
            targets = make_targets(self.config, patches, query, flow)
        predictions = self.predict(patches, mask.visible, query)
        losses = {name: loss_of(predictions[name], targets[name].values, target.loss, counted) for name in predictions}
        space, time = (losses.get(name, clips.new_zeros((), dtype=torch.float32)) for name in ("space", "time"))
        return Losses(target.frame_weight * space + target.motion_weight * time, space, time)

    def draw_masks(self, seeds: Tensor, ratio: float | None = None) -> Mask:
        return masks_of(self.config, seeds, ratio)

    def draw_queries(self, seeds: Tensor, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Return the cubes that the heads predict in training, int64 (B, Q), and which of them the loss counts.

        Visible cubes among the running cells do not count: bool (B, Q), or None if all cubes count.
        """
        clip, ratio = self.config.clip, self.config.mask.decoder_ratio
        if not ratio:
            return mask.masked, None
        query = running_cells(seeds, ratio=ratio, temporal_patches=clip.temporal_patches, grid_size=clip.grid_size)
        is_masked = torch.ones(len(seeds), clip.cubes, dtype=torch.bool, device=seeds.device)
        return query, is_masked.scatter(1, mask.visible, False).gather(1, query)

    def predict(self, patches: Tensor, visible: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Predict the query cubes, int64 (B, Q), from the visible cubes, int64 (B, V).

        ``patches`` is uint8 (B, T, P, R). Each head returns (B, Q, values per cube) in the order of ``query``.
        """
        encoded = self.encoder(patches, visible)
        predictions: dict[str, Tensor] = {}
        for decoder in self.decoders.values():
            predictions.update(decoder(encoded, visible, query))
        return predictions

    @torch.no_grad()
    def reconstruct(
        self, clips: Tensor, seeds: Tensor, ratio: float | None = None, flow: Tensor | None = None
    ) -> Reconstruction:
        """Reconstruct masked clips: return the rows of the paper's Figure 3.

        A head with normalised targets predicts the pattern of a cube, but not its brightness and contrast. The
        reconstruction then uses the true mean and standard deviation of every masked cube, as the figures of VideoMAE
        and MAE do, and ``Reconstruction.true_statistics`` is True. The result looks better than the prediction alone.

        Clips, seeds and flow are as in :meth:`forward`. ``ratio`` overrides ``mask.ratio``. A ratio that masks all
        cubes or no cube raises UserError.
        """
        clip = self.config.clip
        mask = self.draw_masks(seeds, ratio)
        masked = mask.masked.shape[1]
        if not 0 < masked < clip.cubes:
            raise UserError(
                f"ratio={ratio} masks {masked} of {clip.cubes} cubes (mask.kind={self.config.mask.kind}): "
                "choose a ratio that leaves some cubes visible and some masked"
            )
        patches = cut_patches(clips, clip.cube_size)
        every_cube = torch.arange(clip.cubes, device=clips.device).expand(len(clips), -1)
        truth = {
            name: target.values / target.unit
            for name, target in raw_targets(self.config, patches, every_cube, flow).items()
        }
        targets = make_targets(self.config, patches, mask.masked, flow)
        is_masked = torch.zeros_like(every_cube, dtype=torch.bool).scatter(1, mask.masked, True)
        pixels = all_cubes(patches, clip.cube_frames) / GREY_LEVELS

        def paste(cubes: Tensor) -> Tensor:
            return paste_cubes(cubes, clip.cube_frames, clip.cube_size, clip.grid_size)

        rows = {}
        for name, prediction in self.predict(patches, mask.visible, mask.masked).items():
            index = mask.masked[..., None].expand(-1, -1, truth[name].shape[2])  # (B, M, L)
            rows[name] = paste(truth[name].scatter(1, index, targets[name].to_pixels(prediction.float())))
        return Reconstruction(
            clip=clips / GREY_LEVELS,
            masked=paste(pixels.masked_fill(is_masked[..., None], 0.5)),
            space=rows.get("space"),
            motion=paste(truth["time"]) if "time" in truth else None,
            time=rows.get("time"),
            mask=is_masked.view(-1, clip.temporal_patches, clip.grid_size, clip.grid_size),
            true_statistics=self.config.target.normalize,
        )


def masks_of(config: Config, seeds: Tensor, ratio: float | None = None) -> Mask:
    """Draw one mask per seed as in training; ``ratio`` overrides ``mask.ratio``."""
    clip, mask = config.clip, config.mask
    return draw_masks(
        seeds,
        kind=mask.kind,
        ratio=mask.ratio if ratio is None else ratio,
        temporal_patches=clip.temporal_patches,
        spatial_patches=clip.spatial_patches,
    )


@torch.no_grad()
def masked_targets(config: Config, clips: Tensor, seeds: Tensor, flow: Tensor | None = None) -> dict[str, Tensor]:
    """Return the target (B, M, L) of each trained head for all masked cubes of the clips."""
    patches = cut_patches(clips, config.clip.cube_size)
    targets = make_targets(config, patches, masks_of(config, seeds).masked, flow)
    return {name: target.values for name, target in targets.items()}


def build_motionmae(config: Config) -> MotionMAE:
    """Make the model with initial weights from ``config.seed``; the global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MotionMAE(config)


def no_decay(model: nn.Module) -> set[str]:
    """Return the names of the parameters without weight decay: biases, norms, mask tokens and position tables.

    Call this before ZeRO-3 wraps the model, because ZeRO-3 flattens every parameter to one dimension.
    """
    return {name for name, weight in model.named_parameters() if weight.ndim < 2 or name.endswith("pos_embed.table")}
