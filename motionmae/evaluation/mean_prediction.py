"""What a head would lose that had learned nothing but the mean of its target: the mark a loss must fall below."""

from itertools import islice

import torch

from motionmae.config import Config
from motionmae.data.loader import ClipLoader
from motionmae.models.cubes import cut_patches
from motionmae.models.masking import draw_masks
from motionmae.models.targets import loss_of, make_targets


def mean_prediction_losses(config: Config, clips: int = 256) -> dict[str, float]:
    """Return each head's loss if it said, for every masked cube, the mean cube of the data set.

    Measured on the first ``clips`` clips of the run's own stream, cut and masked as in training (a video's middle, say,
    holds less motion than its ends), with the run's targets and loss. With normalised targets it is close to 1 for
    frames, and less for motion, whose static cubes are kept near zero by ``target.motion_eps``.

    Raises:
        UserError: if the shards are not there.
    """
    clip, mask = config.clip, config.mask
    flow = config.target.has_motion and config.target.motion_source == "flow"
    with ClipLoader(config.data, clip, seed=config.seed, batch=1, micro_batch=1, flow=flow) as loader:
        batches = list(islice(loader.batches(0), clips))
    seeds = torch.cat([batch.seeds for batch in batches])
    masks = draw_masks(seeds, kind=mask.kind, ratio=mask.ratio, slots=clip.slots, places=clip.cubes_per_slot)
    patches = cut_patches(torch.cat([batch.clips for batch in batches]), clip.cube_size)
    flows = torch.cat([batch.flow for batch in batches if batch.flow is not None]) if flow else None
    losses = {}
    for head, target in make_targets(config, patches, masks.masked, flows).items():
        mean = target.values.mean(dim=(0, 1)).expand_as(target.values)
        losses[head] = float(loss_of(mean, target.values, config.target.loss))
    return losses
