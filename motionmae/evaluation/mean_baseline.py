"""Baseline for the loss of a decoder head: always predict the mean of the head's target."""

from pathlib import Path

import torch

from motionmae.config import Config
from motionmae.distributed.devices import choose_device
from motionmae.engine.precision import autocast
from motionmae.evaluation.load_model import load_pretrained
from motionmae.training.validation.heads import HeldOutClips, add, measure_baselines


def mean_baseline_losses(config: Config, clips: int = 256) -> dict[str, float]:
    """Return the loss of each head if it predicted the mean target cube for every masked cube.

    The loss is measured on the first ``clips`` clips of training, cropped and masked as in training. With normalised
    targets the loss is close to 1 for frames, and smaller for motion, because ``target.motion_eps`` keeps static cubes
    near zero.
    """
    return measure_baselines(HeldOutClips(config, config.data.shards, clips, torch.device("cpu")))


@torch.no_grad()
def explained_variance(run: Path, shards: str, clips: int = 256) -> dict[str, float]:
    """Return the explained variance of each trained head: 1 - its loss / the loss of the mean baseline.

    The newest checkpoint is measured on the first ``clips`` clips of ``shards`` (a folder or a URL), cropped and masked
    as in training. Held-out shards show overfitting. Validation while training computes the same figures.
    """
    loaded = load_pretrained(run)
    device = choose_device(loaded.config.engine.device)
    held_out = HeldOutClips(loaded.config, shards, clips, device)
    means = measure_baselines(held_out)
    model = loaded.model.to(device)
    with autocast(loaded.config.engine.precision, device):
        total = add([held_out.sum_losses(batch, model) for batch in held_out.read()])
    return {head: 1 - float(total[head]) / clips / mean for head, mean in means.items()}
