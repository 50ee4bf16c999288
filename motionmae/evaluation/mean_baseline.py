"""What a head would lose that had learned nothing but the mean of its target: the mark a loss must fall below."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.data.loader import ClipLoader
from motionmae.distributed.context import choose_device
from motionmae.evaluation.load_run import load_pretrained
from motionmae.models.cubes import cut_patches
from motionmae.models.masking import draw_masks
from motionmae.models.targets import loss_of, make_targets

_AT_ONCE = 32  # clips of a forward pass


def mean_prediction_losses(config: Config, clips: int = 256) -> dict[str, float]:
    """Return each head's loss if it said, for every masked cube, the mean cube of the data set.

    Measured on the first ``clips`` clips of the run's own stream, cut and masked as in training (a video's middle, say,
    holds less motion than its ends), with the run's targets and loss. With normalised targets it is close to 1 for
    frames, and less for motion, whose static cubes are kept near zero by ``target.motion_eps``.

    Raises:
        UserError: if the shards are not there.
    """
    return _mean_losses(config, *_first_clips(config, clips))


@torch.no_grad()
def explained_variance(run: Path, shards: str, clips: int = 256) -> dict[str, float]:
    """Return what each trained head of a run explains of its target: 1 - its loss / the loss of predicting the mean.

    Args:
        run: its folder; the newest checkpoint is taken.
        shards: the clips' folder or URL, which need not be the run's: held-out ones tell what was learned by heart.
        clips: how many, the first of the stream of that data, cut and masked as in training.

    Raises:
        UserError: as :func:`motionmae.evaluation.load_run.load_pretrained`, or the shards are not there.
    """
    loaded = load_pretrained(run)
    config = loaded.config.updated({"data.shards": shards})
    frames, seeds, flow = _first_clips(config, clips)
    lost = dict.fromkeys(means := _mean_losses(config, frames, seeds, flow), 0.0)
    device = choose_device(config.engine.device)
    model = loaded.model.to(device)
    for part in torch.arange(len(seeds)).split(_AT_ONCE):
        inputs = (None if values is None else values[part].to(device) for values in (frames, seeds, flow))
        losses = model(*inputs)
        for head in lost:
            lost[head] += float(getattr(losses, head)) * len(part) / len(seeds)
    return {head: 1 - lost[head] / mean for head, mean in means.items()}


def _first_clips(config: Config, clips: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Clips uint8 (n, T, H, W, 3), seeds (n,) and, if the time head rebuilds it, flow (n, T, H, W, 2)."""
    flow = config.target.has_motion and config.target.motion_source == "flow"
    with ClipLoader(config.data, config.clip, seed=config.seed, batch=1, micro_batch_size=1, flow=flow) as loader:
        batches = list(islice(loader.batches(0), clips))
    flows = torch.cat([batch.flow for batch in batches if batch.flow is not None]) if flow else None
    return torch.cat([batch.clips for batch in batches]), torch.cat([batch.seeds for batch in batches]), flows


def _mean_losses(config: Config, clips: Tensor, seeds: Tensor, flow: Tensor | None) -> dict[str, float]:
    clip, mask = config.clip, config.mask
    masks = draw_masks(
        seeds,
        kind=mask.kind,
        ratio=mask.ratio,
        temporal_patches=clip.temporal_patches,
        spatial_patches=clip.spatial_patches,
    )
    patches = cut_patches(clips, clip.cube_size)
    losses = {}
    for head, target in make_targets(config, patches, masks.masked, flow).items():
        mean = target.values.mean(dim=(0, 1)).expand_as(target.values)
        losses[head] = float(loss_of(mean, target.values, config.target.loss))
    return losses
