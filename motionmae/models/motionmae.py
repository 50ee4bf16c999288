"""MotionMAE: one encoder over the visible cubes, a space head for their pixels and a time head for their motion.

VideoMAE is the same model with ``target.kind=frame`` and tube masks; MAE-ST with ``target.kind=frame`` and global ones.
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
    """0-dim float32 tensors; a head that is not trained has loss 0."""

    total: Tensor
    """``target.frame_weight * space + target.motion_weight * time``: what is minimised."""
    space: Tensor
    """Mean loss of the space head over masked cubes."""
    time: Tensor
    """Mean loss of the time head over masked cubes."""


class Reconstruction(NamedTuple):
    """What Figure 3 shows, as clips (B, T, H, W, 3) of floats; predictions may leave [0, 1] by a little.

    Visible cubes show the truth in every picture. Flow, and signed motion, may be negative.
    """

    clip: Tensor
    """The input, in [0, 1]."""
    masked: Tensor
    """The input with masked cubes in grey, 0.5."""
    space: Tensor | None
    """Masked cubes as the space head rebuilds them; None without that head."""
    motion: Tensor | None
    """The true motion, in units of pixel value 1 (flow: (B, T, H, W, 2), in pixels); None without a time head."""
    time: Tensor | None
    """Masked cubes' motion as the time head rebuilds it; None without that head."""
    mask: Tensor
    """bool (B, slots, side, side): True where a cube is masked."""
    true_statistics: bool
    """Whether masked cubes borrow the true cube's mean and deviation, as they must where targets are normalised."""


class MotionMAE(nn.Module):
    """The pre-training model. Its loss depends on its weights, the clips and their seeds, and on nothing else."""

    def __init__(self, config: Config):
        """Make the model with only the heads that ``config.target.kind`` needs; draws from torch's global generator."""
        super().__init__()
        self.config = config
        clip, model, outputs = config.clip, config.model, output_sizes(config)
        shared = model.decoder == "shared"
        trunks = {"shared": outputs} if shared else {name: {name: values} for name, values in outputs.items()}
        self.encoder = Encoder(clip, model)
        self.decoders = nn.ModuleDict({name: Decoder(clip, model, heads) for name, heads in trunks.items()})

    def forward(self, clips: Tensor, seeds: Tensor, flow: Tensor | None = None) -> Losses:
        """Hide cubes, rebuild them, compare.

        Args:
            clips: uint8 (B, T, H, W, 3).
            seeds: int64 (B,), on the same device; each clip's mask follows from its seed alone.
            flow: (B, T, H, W, 2) of any type, in pixels; the time head's target if ``target.motion_source=flow``.
        """
        mask, target = self.draw_masks(seeds), self.config.target
        patches = cut_patches(clips, self.config.clip.cube_size)
        rebuilt, counted = self.draw_rebuilt(seeds, mask)
        with torch.no_grad():
            targets = make_targets(self.config, patches, rebuilt, flow)
        predictions = self.predict(patches, mask.visible, rebuilt)
        losses = {name: loss_of(predictions[name], targets[name].values, target.loss, counted) for name in predictions}
        space, time = (losses.get(name, clips.new_zeros((), dtype=torch.float32)) for name in ("space", "time"))
        return Losses(target.frame_weight * space + target.motion_weight * time, space, time)

    def draw_masks(self, seeds: Tensor, ratio: float | None = None) -> Mask:
        """Return the masks of ``seeds``, with ``mask.ratio`` unless another is given."""
        clip, mask = self.config.clip, self.config.mask
        chosen = mask.ratio if ratio is None else ratio
        return draw_masks(seeds, kind=mask.kind, ratio=chosen, slots=clip.temporal_patches, places=clip.spatial_patches)

    def draw_rebuilt(self, seeds: Tensor, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Return which cubes heads rebuild in training, int64 (B, R), and which of these count, bool; None: all."""
        clip, ratio = self.config.clip, self.config.mask.decoder_ratio
        if not ratio:
            return mask.masked, None
        rebuilt = running_cells(seeds, ratio=ratio, slots=clip.temporal_patches, side=clip.grid_size)
        hidden = torch.ones(len(seeds), clip.cubes, dtype=torch.bool, device=seeds.device)
        return rebuilt, hidden.scatter(1, mask.visible, False).gather(1, rebuilt)

    def predict(self, patches: Tensor, visible: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
        """Return each trained head's prediction of some cubes.

        Args:
            patches: uint8 (B, T, P, R) of :func:`motionmae.models.cubes.cut_patches`.
            visible: int64 (B, V), the cubes that the encoder sees.
            rebuilt: int64 (B, M), those to be rebuilt.

        Returns:
            For each head (B, M, L), in the order of ``rebuilt``.
        """
        encoded = self.encoder(patches, visible)
        predictions: dict[str, Tensor] = {}
        for decoder in self.decoders.values():
            predictions.update(decoder(encoded, visible, rebuilt))
        return predictions

    @torch.no_grad()
    def reconstruct(
        self, clips: Tensor, seeds: Tensor, ratio: float | None = None, flow: Tensor | None = None
    ) -> Reconstruction:
        """Return the pictures of Figure 3; arguments as of :meth:`forward`.

        With normalised targets a head tells a cube's pattern but neither its brightness nor its contrast. Pictures then
        borrow the true mean and standard deviation of every masked cube (as VideoMAE's and MAE's pictures do), which
        ``Reconstruction.true_statistics`` says: they look better than what the model alone could draw.

        Args:
            clips: uint8 (B, T, H, W, 3).
            seeds: int64 (B,).
            ratio: hides another share than ``mask.ratio``.
            flow: (B, T, H, W, 2), if ``target.motion_source=flow``.

        Raises:
            UserError: if ``ratio`` hides all cubes or none.
        """
        clip = self.config.clip
        mask = self.draw_masks(seeds, ratio)
        masked = mask.masked.shape[1]
        if not 0 < masked < clip.cubes:
            raise UserError(
                f"ratio={ratio} hides {masked} of {clip.cubes} cubes (mask.kind={self.config.mask.kind}): "
                "choose one that hides some and leaves some"
            )
        patches = cut_patches(clips, clip.cube_size)
        every_cube = torch.arange(clip.cubes, device=clips.device).expand(len(clips), -1)
        raw = raw_targets(self.config, patches, every_cube, flow)
        truth = {name: target.values / target.unit for name, target in raw.items()}
        wanted = make_targets(self.config, patches, mask.masked, flow)
        drawn = {
            name: truth[name].scatter(1, _rows(mask.masked, truth[name]), wanted[name].to_pixels(prediction.float()))
            for name, prediction in self.predict(patches, mask.visible, mask.masked).items()
        }
        seen = all_cubes(patches, clip.cube_frames) / GREY_LEVELS
        hidden = torch.zeros_like(every_cube, dtype=torch.bool).scatter(1, mask.masked, True)

        def picture(cubes: dict[str, Tensor], head: str) -> Tensor | None:
            return paste_cubes(cubes[head], clip.cube_frames, clip.cube_size, clip.grid_size) if head in cubes else None

        return Reconstruction(
            clip=clips / GREY_LEVELS,
            masked=paste_cubes(
                seen.masked_fill(hidden[..., None], 0.5), clip.cube_frames, clip.cube_size, clip.grid_size
            ),
            space=picture(drawn, "space"),
            motion=picture(truth, "time"),
            time=picture(drawn, "time"),
            mask=hidden.view(-1, clip.temporal_patches, clip.grid_size, clip.grid_size),
            true_statistics=self.config.target.normalize,
        )


def _rows(cubes: Tensor, values: Tensor) -> Tensor:
    """Spread cube numbers (B, M) over a cube's values, as scatter wants them: (B, M, L)."""
    return cubes[..., None].expand(-1, -1, values.shape[2])


def build_motionmae(config: Config) -> MotionMAE:
    """Make the model with initial weights that follow from ``config.seed`` alone; no generator outside is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MotionMAE(config)


def no_decay(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay: the one-dimensional and the position tables.

    One-dimensional are biases, norms and mask tokens.
    Ask before ZeRO-3 takes the model over: it flattens every parameter to one dimension.
    """
    return {name for name, weight in model.named_parameters() if weight.ndim < 2 or name.endswith("pos_embed.table")}
