"""Features of a frozen encoder for a linear probe: the tokens of whole videos, pooled in cells of time and place."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.config import ClipConfig, EngineConfig
from motionmae.data.clip_sampling import Crop, check_windows, stored_step
from motionmae.data.held_out.views import dense_views
from motionmae.data.jpeg import Target, decode_clips
from motionmae.data.shards.reader import ShardReader
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

Floats = NDArray[np.float32]


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


def read_whole_frames(reader: ShardReader, sample: int, clip: ClipConfig) -> NDArray[np.uint8]:
    """Read CLIPS clips and their mirror images: uint8 (2 * CLIPS, T, size, size, 3).

    Whole frames are scaled to the square, so that nothing at their edges is lost.
    """
    meta = reader.read_meta(sample)
    views = dense_views(meta.frames, clip.frames, stored_step(clip, meta.stride), CLIPS)
    clips = np.empty((2 * CLIPS, clip.frames, clip.size, clip.size, 3), np.uint8)
    crops = [Crop(0, 0, meta.height, meta.width, flip) for flip in (False, True)]
    cuts = [(frames, crop) for crop in crops for frames in views]
    numbers = sorted({number for frames in views for number in frames})
    jpegs = dict(zip(numbers, reader.read_frames(sample, numbers), strict=True))
    decode_clips(jpegs, meta, [Target(frames, crop, out) for (frames, crop), out in zip(cuts, clips, strict=True)])
    return clips


def cell_features(weights: str, readers: Sequence[ShardReader]) -> list[tuple[Floats, Floats]]:
    """Return the features of all samples and of their mirror images, (N, D) each, for each reader.

    They are kept beside the weights, so that a second run does not compute them again. Raises UserError if a video
    cannot be read.
    """
    with distributed(EngineConfig()) as rank:
        source = choose_weights(rank, weights, None, ())
        embedding, loaded = load_embedding(source)
        model, config = CellPooling(embedding.encoder), loaded.config
        frozen = FrozenModel(model, config, rank.device, batch=2 * CLIPS)
        found = []
        for reader in readers:
            check_windows(reader.manifest, reader.folder, config.clip)
            settings = {"readout": [CLIPS, TIMES, CELLS], "precision": frozen.precision, **config.clip.model_dump()}
            key = CacheKey(fingerprint(model), reader.manifest.fingerprint, settings)
            results = infer(
                items_of(reader),
                lambda name, reader=reader: read_whole_frames(reader, int(name), config.clip),  # type: ignore[misc]
                lambda clips: frozen(clips).reshape(2, -1).numpy(),
                source.results / "real_video" / key.digest,
                key,
                rank,
                f"{reader.manifest.dataset} {reader.manifest.split}",
                config.data.threads,
            )
            if results.unreadable:
                raise UserError(f"{reader.folder} has unreadable videos: check it with `motionmae shards verify`")
            values = np.stack([results.values[str(sample)] for sample in range(reader.manifest.samples)])
            found.append((values[:, 0], values[:, 1]))
        return found
