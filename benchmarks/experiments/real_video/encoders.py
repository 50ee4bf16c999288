"""Features of a frozen encoder for a linear probe: the tokens of whole videos, pooled in cells of time and place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d

from benchmarks.experiments.real_video.readout import Floats
from motionmae.checkpointing.load_weights import fingerprint
from motionmae.config import ClipConfig, Config, EngineConfig
from motionmae.data.clip_decoder import read_frames
from motionmae.data.clip_sampling import Crop, check_windows, stored_step
from motionmae.data.held_out.views import dense_views
from motionmae.data.jpeg import Target, decode_clips
from motionmae.data.shards.reader import ShardReader
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.process_group import distributed
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.inference import FrozenModel, infer, items_of
from motionmae.evaluation.load_model import choose_weights, load_embedding
from motionmae.models.cubes import cut_patches
from motionmae.models.vit import Encoder

CLIPS = 3
"""Clips of a video, evenly spread from its first frame to its last."""
TIMES, CELLS = 2, 4
"""Cells of a clip along time, and along height and width."""


class CellPooling(nn.Module):
    """Map clips (B, T, H, W, 3) to the mean and the standard deviation of the encoder's tokens in each cell.

    The result is (B, 2 * width * TIMES * CELLS * CELLS). The mean tells what is in a cell, and the deviation how much
    the tokens of a cell differ, which motion does to them.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Tensor:
        clip = self.encoder.clip
        tokens = self.encoder(cut_patches(clips, clip.cube_size)).float()
        volume = tokens.mT.unflatten(2, (clip.temporal_patches, clip.grid_size, clip.grid_size))
        cells = (TIMES, CELLS, CELLS)
        mean, square = adaptive_avg_pool3d(volume, cells), adaptive_avg_pool3d(volume.square(), cells)
        return torch.stack([mean, (square - mean.square()).clamp(min=0).sqrt()], 1).flatten(1)


def read_whole_frames(reader: ShardReader, sample: int, clip: ClipConfig, mirror: bool) -> NDArray[np.uint8]:
    """Read CLIPS clips, followed by their mirror images if ``mirror``: uint8 (CLIPS or 2 * CLIPS, T, size, size, 3).

    Whole frames are scaled to the square, so that nothing at their edges is lost.
    """
    meta = reader.read_meta(sample)
    views = dense_views(meta.frames, clip.frames, stored_step(clip, meta.stride), CLIPS)
    crops = [Crop(0, 0, meta.height, meta.width, flip) for flip in ((False, True) if mirror else (False,))]
    clips = np.empty((len(crops) * CLIPS, clip.frames, clip.size, clip.size, 3), np.uint8)
    cuts = ((frames, crop) for crop in crops for frames in views)
    targets = [Target(*cut, out) for cut, out in zip(cuts, clips, strict=True)]
    decode_clips(read_frames(reader, sample, targets), meta, targets)
    return clips


def cell_features(weights: str, readers: Sequence[ShardReader], mirror: bool) -> list[tuple[Floats, ...]]:
    """Return the features (N, D) of all samples, and those of their mirror images if ``mirror``, for each reader.

    They are kept beside the weights, so that a second run does not compute them again. Raises UserError if a video
    cannot be read.
    """
    with distributed(EngineConfig()) as rank:
        source = choose_weights(rank, weights, None, ())
        embedding, loaded = load_embedding(source)
        frozen = FrozenModel(CellPooling(embedding.encoder), loaded.config, rank.device, batch=CLIPS)
        work = source.results / "real_video"
        return [_features_of(reader, frozen, loaded.config, work, rank, mirror) for reader in readers]


def _features_of(
    reader: ShardReader, frozen: FrozenModel, config: Config, work: Path, rank: DistributedContext, mirror: bool
) -> tuple[Floats, ...]:
    check_windows(reader.manifest, reader.folder, config.clip)
    settings = {"readout": [CLIPS, TIMES, CELLS], "mirror": mirror, "precision": frozen.precision}
    key = CacheKey(fingerprint(frozen.model), reader.manifest.fingerprint, settings | config.clip.model_dump())
    results = infer(
        items_of(reader),
        lambda name: read_whole_frames(reader, int(name), config.clip, mirror),
        lambda clips: frozen(clips).unflatten(0, (-1, CLIPS)).flatten(1).numpy(),
        work / key.digest,
        key,
        rank,
        f"{reader.manifest.dataset} {reader.manifest.split}",
        config.data.threads,
    )
    if results.unreadable:
        raise UserError(f"{reader.folder} has unreadable videos: check it with `motionmae shards verify`")
    values = np.stack([results.values[str(sample)] for sample in range(reader.manifest.samples)])
    return tuple(values.swapaxes(0, 1))
