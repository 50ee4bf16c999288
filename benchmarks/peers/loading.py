"""Other loaders for benchmarks/loader.py, each written as in its documentation or code base.

All return batches of clips of 16 x 224 x 224, with one frame of 4 and one random crop per clip, from one worker process
of torch's DataLoader per core. They read the videos or MotionMAE's shards.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

FRAMES, STRIDE, SIZE = 16, 4, 224
SPAN = FRAMES * STRIDE
SCALES = (1.0, 0.875, 0.75, 0.66)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

cv2.setNumThreads(0)


def _frames(total: int, random: np.random.Generator) -> list[int]:
    """Choose the frame numbers of a clip. A short video repeats its last frame."""
    first = int(random.integers(max(1, total - SPAN + 1)))
    return [min(first + STRIDE * number, total - 1) for number in range(FRAMES)]


def _scaled_crop(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Choose top, left, height and width of a crop with the sides of MultiScaleCrop, at a random position."""
    first = int(random.integers(len(SCALES)))
    second = int(np.clip(first + random.integers(-1, 2), 0, len(SCALES) - 1))
    h, w = (int(min(height, width) * SCALES[number]) for number in (first, second))
    return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w


def decord(path: str, random: np.random.Generator) -> torch.Tensor:
    """Read a clip as VideoMAE's pre-training does: decord, PIL, normalised float32 (C, T, H, W)."""
    from decord import VideoReader, cpu

    reader = VideoReader(path, num_threads=1, ctx=cpu(0))
    pictures = [Image.fromarray(frame) for frame in reader.get_batch(_frames(len(reader), random)).asnumpy()]
    top, left, height, width = _scaled_crop(pictures[0].height, pictures[0].width, random)
    box = (left, top, left + width, top + height)
    cut = [picture.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for picture in pictures]
    stacked = (
        torch.from_numpy(np.concatenate([np.asarray(picture) for picture in cut], axis=2))
        .permute(2, 0, 1)
        .contiguous()
        .float()
        .div(255)
    )
    mean, std = (torch.tensor(values * FRAMES)[:, None, None] for values in (MEAN, STD))
    return stacked.sub_(mean).div_(std).view(FRAMES, 3, SIZE, SIZE).transpose(0, 1)


def torchcodec(path: str, random: np.random.Generator) -> torch.Tensor:
    """Read a clip with torchcodec's decoder and torch's resize of uint8."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_at(_frames(len(decoder), random)).data
    top, left, height, width = _scaled_crop(frames.shape[2], frames.shape[3], random)
    cut = frames[:, :, top : top + height, left : left + width]
    return torch.nn.functional.interpolate(cut, (SIZE, SIZE), mode="bilinear")


def pyav(path: str, random: np.random.Generator) -> torch.Tensor:
    """Read a clip with PyAV: seek to the key frame before the clip, decode, convert and resize 16 frames."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, base = stream.average_rate, stream.time_base
        assert rate is not None, f"{path} has no frame rate"
        assert base is not None, f"{path} has no time base"
        length = (container.duration or 0) / av.time_base if stream.duration is None else stream.duration * base
        numbers = _frames(int(length * rate), random)
        container.seek(int(numbers[0] / rate / base), stream=stream)
        found: list[np.ndarray] = []
        for frame in container.decode(stream):
            if round(frame.time * rate) >= numbers[len(found)]:
                found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == FRAMES:
                    break
    found += found[-1:] * (FRAMES - len(found))
    return _cut(found, random)


def _cut(pictures: list[np.ndarray], random: np.random.Generator) -> torch.Tensor:
    """Cut the same random crop from all pictures and resize it: uint8 (T, H, W, C)."""
    top, left, height, width = _scaled_crop(pictures[0].shape[0], pictures[0].shape[1], random)
    cut = [picture[top : top + height, left : left + width] for picture in pictures]
    return torch.from_numpy(np.stack([cv2.resize(picture, (SIZE, SIZE)) for picture in cut]))


class Videos(IterableDataset):
    """Endless clips of random videos."""

    def __init__(self, read: Callable[[str, np.random.Generator], torch.Tensor], videos: list[Path]):
        self.read, self.videos = read, [str(video) for video in videos]

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        random = np.random.default_rng(0 if worker is None else worker.id)
        while True:
            yield self.read(self.videos[random.integers(len(self.videos))], random)


class WebShards(IterableDataset):
    """Clips of webdataset's plain pipeline on the shards: whole samples in order, JPEGs decoded by PIL."""

    def __init__(self, shards: list[Path]):
        self.shards = [str(shard) for shard in shards]

    def __iter__(self) -> Iterator[torch.Tensor]:
        import webdataset

        worker = get_worker_info()
        random = np.random.default_rng(0 if worker is None else worker.id)
        decode = webdataset.imagehandler("rgb8")
        while True:
            pipeline = webdataset.WebDataset(self.shards, shardshuffle=100, nodesplitter=None, empty_check=False)
            for sample in pipeline.shuffle(8):
                (start,) = np.frombuffer(sample["jpgs"], "<u4", 1).tolist()
                offsets = np.frombuffer(sample["jpgs"], "<u4", start // 4).tolist()
                jpegs = [sample["jpgs"][low:high] for low, high in itertools.pairwise(offsets)]
                yield _cut([decode("jpg", jpegs[number]) for number in _frames(len(jpegs), random)], random)


def in_workers(dataset: IterableDataset, batch: int, cores: int) -> DataLoader:
    """Return a DataLoader with one process per core."""
    return DataLoader(dataset, batch, num_workers=cores, multiprocessing_context="forkserver", persistent_workers=False)


def installed() -> dict[str, bool]:
    """Return for each peer whether its package is installed."""
    names = ("decord", "torchcodec", "pyav", "webdataset", "ffcv")
    return {name: importlib.util.find_spec("av" if name == "pyav" else name) is not None for name in names}
