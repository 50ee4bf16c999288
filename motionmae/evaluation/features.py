"""Clip features of a frozen encoder: compute them for videos or shards, write them, classify by nearest neighbours.

A feature is the mean of the encoder's tokens for the middle clip of the video, cropped to the central square.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.config import Config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.clip_sampling import check_windows
from motionmae.data.shards.reader import ShardReader
from motionmae.data.video.read_video import VIDEO_SUFFIXES, read_central_clip
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.inference import FrozenModel, Results, infer, items_of
from motionmae.evaluation.load_model import Embedding


def find_videos(folder: Path) -> tuple[dict[str, str], int]:
    """Find the video files in a folder, recursively.

    Returns:
        Sorted relative paths, each with a stamp that changes with the file, and the number of other files.

    Raises:
        UserError: the folder has no video file.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is {'a file' if folder.exists() else 'missing'}: give the folder that holds the videos"
        )
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
    """Compute the features of ``videos`` from :func:`find_videos`, and keep them in ``work`` for a restart.

    All ranks must call this.
    """

    def read(name: str) -> NDArray[np.uint8]:
        return read_central_clip(folder / name, config.clip).numpy()

    frozen = FrozenModel(model, config, rank.device, batch=1)
    key = _cache_key(frozen, config, str(folder.resolve()))
    return infer(videos, read, _compute(frozen), work, key, rank, "features", config.data.threads)


def features_of_shards(
    model: Embedding, config: Config, reader: ShardReader, work: Path, rank: DistributedContext
) -> Results:
    """Compute the features of all samples, keyed by sample number, and keep them in ``work`` for a restart.

    All ranks must call this.
    """
    check_windows(reader.manifest, reader.folder, config.clip)

    def read(name: str) -> NDArray[np.uint8]:
        return read_clip(reader, int(name), config.clip).numpy()

    frozen = FrozenModel(model, config, rank.device, batch=1)
    key = _cache_key(frozen, config, reader.manifest.fingerprint)
    parts, title = work / key.digest, reader.manifest.split
    return infer(items_of(reader), read, _compute(frozen), parts, key, rank, title, config.data.threads)


def _cache_key(frozen: FrozenModel, config: Config, inputs: str) -> CacheKey:
    return CacheKey(fingerprint(frozen.model), inputs, {"precision": frozen.precision, **config.clip.model_dump()})


def _compute(frozen: FrozenModel) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    return lambda clip: frozen(clip[None]).numpy()[0]


def as_npz(results: Results) -> bytes:
    """Pack results as npz: ``names``, ``features`` (float32, one row per name), ``unreadable`` and ``reasons``."""
    content = io.BytesIO()
    np.savez(
        content,
        names=np.array(list(results.values)),
        features=np.stack(list(results.values.values())) if results.values else np.empty((0, 0), np.float32),
        unreadable=np.array(list(results.unreadable)),
        reasons=np.array(list(results.unreadable.values())),
    )
    return content.getvalue()


def as_parquet(results: Results) -> bytes:
    """Pack results as parquet, one row per video: ``name``, ``feature`` (list of float32) and ``reason``.

    ``feature`` is null for an unreadable video, ``reason`` for all others. Raise UserError if pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("writing .parquet needs pyarrow: pip install 'motionmae[parquet]', or choose .npz") from error
    names = [*results.values, *results.unreadable]
    features = [*results.values.values(), *(None for _ in results.unreadable)]
    table = pyarrow.table(
        {
            "name": pyarrow.array(names, pyarrow.string()),
            "feature": pyarrow.array(features, pyarrow.list_(pyarrow.float32())),
            "reason": pyarrow.array([results.unreadable.get(name) for name in names], pyarrow.string()),
        }
    )
    content = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({"writer": "motionmae features"}), content)
    return content.getvalue()


WRITERS: dict[str, Callable[[Results], bytes]] = {".npz": as_npz, ".parquet": as_parquet}
"""Maps the extension of a file to its writer."""
