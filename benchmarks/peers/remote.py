"""Other loaders of remote shards for benchmarks/remote.py, each used as in its documentation."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from motionmae.data.open_shards import open_reader
from motionmae.data.shards.format import pack_frames

FRAMES, STRIDE, SIZE = 16, 4, 112


def _clip(blob: bytes) -> torch.Tensor:
    """Decode the first clip of a KEY.jpgs and cut its central square."""
    (start,) = np.frombuffer(blob, "<u4", 1).tolist()
    offsets = np.frombuffer(blob, "<u4", start // 4).tolist()
    jpegs = [blob[low:high] for low, high in itertools.pairwise(offsets)]
    pictures = [simplejpeg.decode_jpeg(jpegs[min(STRIDE * frame, len(jpegs) - 1)]) for frame in range(FRAMES)]
    side = min(pictures[0].shape[:2])
    return torch.from_numpy(np.stack([cv2.resize(picture[:side, :side], (SIZE, SIZE)) for picture in pictures]))


class _WebShards(IterableDataset):
    """Clips of the shards of one DataLoader process, in order."""

    def __init__(self, urls: list[str]):
        self.urls = urls

    def __iter__(self) -> Iterator[torch.Tensor]:
        import webdataset

        worker = get_worker_info()
        urls = self.urls if worker is None else self.urls[worker.id :: worker.num_workers]
        for sample in webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None, workersplitter=None):
            yield _clip(sample["jpgs"])


@contextlib.contextmanager
def _batches(dataset: Any, batch: int, processes: int) -> Iterator[Iterator[int]]:
    batches: Any = iter(DataLoader(dataset, batch, num_workers=processes, multiprocessing_context="spawn"))
    yield (len(clips) for clips in batches)
    batches._shutdown_workers()


def webdataset(urls: list[str], batch: int, processes: int) -> contextlib.AbstractContextManager[Iterator[int]]:
    """Open webdataset."""
    return _batches(_WebShards(urls), batch, processes)


@contextlib.contextmanager
def streaming(remote: str, cache: Path, batch: int, processes: int) -> Iterator[Iterator[int]]:
    """Open MosaicML Streaming with an empty cache."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    with tempfile.TemporaryDirectory(dir=cache) as local:
        dataset = StreamingDataset(remote=remote, local=local, shuffle=True, batch_size=batch, shuffle_seed=0)
        loader = DataLoader(dataset, batch, num_workers=processes, collate_fn=_collate)
        yield (len(clips) for clips in loader)


def _collate(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([_clip(sample["jpgs"]) for sample in samples])


def write_mds(shards: Path, out: Path) -> None:
    """Write the samples of ``shards`` as an MDS data set with shards of about the same size."""
    from streaming import MDSWriter

    reader = open_reader(shards)
    size = max(entry.bytes for entry in reader.manifest.shards)
    with MDSWriter(out=str(out), columns={"jpgs": "bytes"}, size_limit=size) as writer:
        for sample in range(reader.manifest.samples):
            frames = reader.read_frames(sample, range(reader.read_meta(sample).frames))
            writer.write({"jpgs": b"".join(pack_frames(frames))})
