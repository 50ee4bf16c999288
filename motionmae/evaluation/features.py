"""Compute clip features with a frozen encoder, for a folder of videos or for shards.

A feature is the mean of the encoder's tokens for the middle clip of the video, cropped to the central square.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.config import Config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.clip_sampling import check_windows
from motionmae.data.shards.reader import ShardReader
from motionmae.data.video import VIDEO_SUFFIXES, read_central_clip
from motionmae.distributed.context import DistributedContext
from motionmae.engine.precision import resolve_precision
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.inference import FrozenModel, Results, infer, items_of
from motionmae.evaluation.load_run import Embedding


def find_videos(folder: Path) -> tuple[dict[str, str], int]:
    """Find the video files in a folder, recursively. Raises UserError if there are none.

    Returns:
        Sorted relative paths, each with a stamp that changes with the file, and the number of other files.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        known = ", ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{folder} contains no video file: give a folder with files that end in {known}")
    found = {path.relative_to(folder).as_posix(): path.stat() for path in videos}
    stamps = {name: f"{found[name].st_size} {found[name].st_mtime_ns}" for name in sorted(found)}
    return stamps, len(files) - len(videos)


def features_of_files(
    model: Embedding, config: Config, folder: Path, videos: Mapping[str, str], work: Path, rank: DistributedContext
) -> Results:
    """Compute the features of ``videos`` from :func:`find_videos`. A restart continues from ``work``. Collective."""

    def read(name: str) -> NDArray[np.uint8]:
        return read_central_clip(folder / name, config.clip).numpy()

    key = _cache_key(model, config, str(folder.resolve()), rank)
    return infer(videos, read, _embed(model, config, rank), work, key, rank, "features", config.data.threads)


def features_of_shards(
    model: Embedding, config: Config, reader: ShardReader, work: Path, rank: DistributedContext
) -> Results:
    """Compute the feature of every sample; results are keyed by sample number. Collective.

    A restarted command reuses the results in the folder ``work``.
    """
    check_windows(reader.manifest, reader.folder, config.clip)

    def read(name: str) -> NDArray[np.uint8]:
        return read_clip(reader, int(name), config.clip).numpy()

    key = _cache_key(model, config, reader.manifest.fingerprint, rank)
    embed, title, threads = _embed(model, config, rank), reader.manifest.split, config.data.threads
    return infer(items_of(reader), read, embed, work / key.digest, key, rank, title, threads)


def _cache_key(model: Embedding, config: Config, inputs: str, rank: DistributedContext) -> CacheKey:
    precision = resolve_precision(config.engine.precision, rank.device)
    return CacheKey(fingerprint(model), inputs, {"precision": precision, **config.clip.model_dump()})


def _embed(
    model: Embedding, config: Config, rank: DistributedContext
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    frozen = FrozenModel(model, rank, resolve_precision(config.engine.precision, rank.device), batch=1)
    return lambda clip: frozen(clip[None]).numpy()[0]
