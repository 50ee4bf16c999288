"""What a head would lose that had learned nothing but the mean of its target: the mark a loss must fall below."""

import torch

from motionmae.config import Config
from motionmae.data.clips import read_clip
from motionmae.data.reader import ShardReader
from motionmae.models.cubes import cut_patches
from motionmae.models.masking import draw_masks
from motionmae.models.targets import loss_of, make_targets


def mean_prediction_losses(config: Config, clips: int = 64) -> dict[str, float]:
    """Return each head's loss if it said, for every masked cube, the mean cube of the data set.

    Measured on the middle clips of up to ``clips`` samples spread over ``config.data.shards``, with the run's own
    masks, targets and loss. With normalised targets it is close to 1 for frames, and less for motion, whose static
    cubes are kept near zero by ``target.motion_eps``.

    Raises:
        UserError: if the shards are not there.
    """
    reader = ShardReader(config.data.shards, data=config.data)
    samples = torch.linspace(0, reader.manifest.samples - 1, min(clips, reader.manifest.samples)).long()
    batch = torch.stack([read_clip(reader, int(sample), config.clip) for sample in samples])
    clip, mask = config.clip, config.mask
    masks = draw_masks(samples, kind=mask.kind, ratio=mask.ratio, slots=clip.slots, places=clip.cubes_per_slot)
    targets = make_targets(config, cut_patches(batch, clip.cube_size), masks.masked)
    losses = {}
    for head, target in targets.items():
        mean = target.values.mean(dim=(0, 1)).expand_as(target.values)
        losses[head] = float(loss_of(mean, target.values, config.target.loss))
    return losses
