"""Baseline for the loss of a decoder head: always predict the mean of the head's target."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.data.loader import ClipLoader
from motionmae.distributed.devices import choose_device
from motionmae.evaluation.load_model import load_pretrained
from motionmae.models.motionmae import masked_targets
from motionmae.models.targets import loss_of

_BATCH = 32  # clips in a forward pass


def mean_baseline_losses(config: Config, clips: int = 256) -> dict[str, float]:
    """Return the loss of each head if it predicted the mean target cube for every masked cube.

    The loss is measured on the first ``clips`` clips of training, cropped and masked as in training. With normalised
    targets the loss is close to 1 for frames, and smaller for motion, because ``target.motion_eps`` keeps static cubes
    near zero.
    """
    return _mean_losses(config, *_first_clips(config, clips))


@torch.no_grad()
def explained_variance(run: Path, shards: str, clips: int = 256) -> dict[str, float]:
    """Return the explained variance of each trained head: 1 - its loss / the loss of the mean baseline.

    The newest checkpoint is measured on the first ``clips`` clips of ``shards`` (a folder or a URL), cropped and masked
    as in training. Held-out shards show overfitting.
    """
    loaded = load_pretrained(run)
    config = loaded.config.updated({"data.shards": shards})
    frames, seeds, flow = _first_clips(config, clips)
    means = _mean_losses(config, frames, seeds, flow)
    total = dict.fromkeys(means, 0.0)
    device = choose_device(config.engine.device)
    model = loaded.model.to(device)
    for part in torch.arange(len(seeds)).split(_BATCH):
        inputs = (None if values is None else values[part].to(device) for values in (frames, seeds, flow))
        losses = model(*inputs)
        for head in total:
            total[head] += float(getattr(losses, head)) * len(part) / len(seeds)
    return {head: 1 - total[head] / mean for head, mean in means.items()}


def _first_clips(config: Config, clips: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read clips uint8 (n, T, H, W, 3), seeds (n,), and flow (n, T, H, W, 2) if flow is a target."""
    flow = config.target.needs_flow
    with ClipLoader(config.data, config.clip, seed=config.seed, batch=1, micro_batch_size=1, flow=flow) as loader:
        batches = list(islice(loader.batches(0), clips))
    flows = torch.cat([batch.flow for batch in batches if batch.flow is not None]) if flow else None
    return torch.cat([batch.clips for batch in batches]), torch.cat([batch.seeds for batch in batches]), flows


def _mean_losses(config: Config, clips: Tensor, seeds: Tensor, flow: Tensor | None) -> dict[str, float]:
    losses = {}
    for head, target in masked_targets(config, clips, seeds, flow).items():
        mean = target.mean(dim=(0, 1)).expand_as(target)
        losses[head] = float(loss_of(mean, target, config.target.loss))
    return losses
