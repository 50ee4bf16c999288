"""Clip features of a frozen encoder: of a folder of videos for others' use, and k-nearest neighbours as a health check.

A feature is the mean of the encoder's tokens over the clip in the middle of the video, cut to its central square.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.config import Config
from motionmae.data.clips import read_clip
from motionmae.data.shards.reader import ShardReader
from motionmae.data.temporal_sampling import check_windows
from motionmae.data.video import VIDEO_SUFFIXES, read_central_clip
from motionmae.distributed.context import DistributedContext
from motionmae.engine.precision import resolve_precision
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.inference import FrozenModel, Results, infer, items_of
from motionmae.evaluation.load_run import Embedding


def videos_below(folder: Path) -> tuple[dict[str, str], int]:
    """The video files below a folder, and how many others were passed over.

    Returns:
        Their paths relative to the folder, sorted, each with a mark that changes with the file; the count of others.

    Raises:
        UserError: there are none.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        known = ", ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{folder} holds no video file: give a folder with {known} below it")
    found = {path.relative_to(folder).as_posix(): path.stat() for path in videos}
    marks = {name: f"{found[name].st_size} {found[name].st_mtime_ns}" for name in sorted(found)}
    return marks, len(files) - len(videos)


def features_of_files(
    model: Embedding, config: Config, folder: Path, videos: Mapping[str, str], work: Path, rank: DistributedContext
) -> Results:
    """The feature of every one of ``videos`` (of :func:`videos_below`), resumable in ``work``. Collective.

    Raises:
        UserError: ``work`` is of another folder or model.
    """
    identity, embed = _identity(model, config, str(folder.resolve()), rank), _frozen(model, config, rank)

    def read(name: str) -> NDArray[np.uint8]:
        return read_central_clip(folder / name, config.clip).numpy()

    return infer(videos, read, embed, work, identity, rank, "features", config.data.threads)


def features_of_shards(
    model: Embedding, config: Config, reader: ShardReader, work: Path, rank: DistributedContext
) -> Results:
    """The feature of every sample of shards, by its number, resumable below ``work``. Collective.

    Raises:
        UserError: the shards hold windows shorter than a clip.
    """
    check_windows(reader.manifest, reader.folder, config.clip)
    identity, embed = _identity(model, config, reader.manifest.fingerprint, rank), _frozen(model, config, rank)

    def read(name: str) -> NDArray[np.uint8]:
        return read_clip(reader, int(name), config.clip).numpy()

    title, threads = reader.manifest.split, config.data.threads
    return infer(items_of(reader), read, embed, work / identity.digest, identity, rank, title, threads)


def _identity(model: Embedding, config: Config, inputs: str, rank: DistributedContext) -> CacheKey:
    precision = resolve_precision(config.engine.precision, rank.device)
    return CacheKey(fingerprint(model), inputs, {"precision": precision, **config.clip.model_dump()})


def _frozen(
    model: Embedding, config: Config, rank: DistributedContext
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    frozen = FrozenModel(model, rank, resolve_precision(config.engine.precision, rank.device), batch=1)
    return lambda clip: frozen(clip[None]).numpy()[0]
