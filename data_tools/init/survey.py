"""Survey of a folder of videos and of this machine: what the choices of `motionmae init` depend on."""

import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import av

from data_tools.annotations import Split, VideoRecord, read_split
from data_tools.annotations.folder import SPLITS, SUFFIXES
from data_tools.annotations.split import visible_files
from data_tools.annotations.split_names import split_of
from data_tools.annotations.video_index import walk_files
from motionmae.data.video.open_video import RefusedFormat, open_video
from motionmae.data.video.read_video import VIDEO_SUFFIXES
from motionmae.data.video.video_frames import NoDecoder, NoVideoStream, video_stream
from motionmae.errors import UserError

PROBED = 32
"""Videos whose frames are counted."""
HELD_OUT = 5
"""One of this many videos is held out if the folder has no split."""


@dataclass(frozen=True)
class Part:
    """Videos for training, or held-out ones, and the options with which make_shards reads them."""

    videos: tuple[VideoRecord, ...]
    options: tuple[str, ...]
    list_file: str = ""  # content of a list that make_shards needs; empty if the folder has its own split


@dataclass(frozen=True)
class Survey:
    """What is in a folder of videos. Frames, sides and rates are those of up to :data:`PROBED` videos."""

    train: Part
    held_out: Part | None
    class_names: tuple[str, ...]
    frames: tuple[int, ...]
    fps: float  # median
    short_side: int  # median, in pixels
    long_side: int
    unreadable: int
    notes: tuple[str, ...] = ()  # what the reader of the folder noticed

    @property
    def median_frames(self) -> int:
        return round(median(self.frames))

    @property
    def short_frames(self) -> int:
        """Frames that three quarters of the videos have."""
        return sorted(self.frames)[len(self.frames) // 4]


@dataclass(frozen=True)
class Machine:
    """Processors and GPUs of this machine."""

    cores: int
    gpus: int = 0
    gigabytes: float = 0  # memory of a GPU
    device: str = ""  # name that CUDA reports


def look_at_machine() -> Machine:
    import torch

    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        return Machine(cores)
    device = torch.cuda.get_device_properties(0)
    return Machine(cores, torch.cuda.device_count(), device.total_memory / 1e9, device.name)


def look_at_videos(folder: Path) -> Survey:
    """Read the videos, classes and splits of a folder, and the headers of some videos.

    Raises UserError if the folder holds fewer than two videos, or none that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the videos")
    names = _find_splits(folder)
    if "train" in names:
        whole = read_split("folder", folder, None, names["train"])
        train = Part(whole.videos, ("--split", names["train"]))
        other = names.get("val") or names.get("test")
        held_out = Part(read_split("folder", folder, None, other).videos, ("--split", other)) if other else None
    else:
        whole = _read_all(folder)
        train, held_out = _divide(whole)
    found = [video for video in train.videos if video.path is not None]
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} videos for training: a run needs at least two")
    probes = [_probe(path) for video in _sample(found) if (path := video.path)]
    known = [probe for probe in probes if probe]
    if not known:
        raise UserError(f"none of {len(probes)} videos of {folder} can be read: try one with ffprobe")
    frames, rates, sides = zip(*known, strict=True)
    return Survey(
        train, held_out, whole.class_names, frames, median(rates), round(median(min(pair) for pair in sides)),
        round(median(max(pair) for pair in sides)), len(probes) - len(known), whole.notes,
    )  # fmt: skip


def _find_splits(folder: Path) -> dict[str, str]:
    """Return the splits that the folder has, as lists or as folders: train, val, test to the names for --split."""
    lists = [path.stem for path in visible_files(folder, "*.[cCtTjJ]*") if path.suffix.lower() in SUFFIXES]
    names = [stem for stem in lists if stem.lower() in SPLITS]
    names = names or sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    splits: dict[str, str] = {}
    for name in names:
        if split := split_of(name):
            splits.setdefault(split, name)
    return splits


def _read_all(folder: Path) -> Split:
    if not any(path.suffix.lower() in VIDEO_SUFFIXES for path in walk_files(folder)):
        raise UserError(f"{folder} holds no video: give the folder that holds the videos")
    return read_split("folder", folder, None, None)


def _divide(whole: Split) -> tuple[Part, Part | None]:
    """Hold out one of HELD_OUT videos of each class, by a hash of the names."""
    by_class: dict[int, list[VideoRecord]] = defaultdict(list)
    for video in whole.videos:
        by_class[video.label].append(video)
    train, held_out = [], []
    for videos in by_class.values():
        ordered = sorted(videos, key=lambda video: hashlib.sha256(os.fsencode(video.source)).digest())
        count = round(len(ordered) / HELD_OUT) if len(ordered) >= HELD_OUT else int(len(ordered) > 1)
        held_out += ordered[:count]
        train += ordered[count:]
    parts = [tuple(sorted(part, key=lambda video: video.source)) for part in (train, held_out)]
    first, second = (Part(part, (), _list_of(part)) for part in parts)
    return first, second if held_out else None


def _list_of(videos: Sequence[VideoRecord]) -> str:
    """Return a list of videos as csv, with their class names if they have classes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has_classes = any(video.class_name for video in videos)
    writer.writerow(["path", "label"] if has_classes else ["path"])
    for video in videos:
        writer.writerow([video.source, video.class_name] if has_classes else [video.source])
    return text.getvalue()


def _sample(videos: Sequence[VideoRecord]) -> list[VideoRecord]:
    step = max(1, len(videos) / PROBED)
    return [videos[int(number * step)] for number in range(min(PROBED, len(videos)))]


def _probe(path: Path) -> tuple[int, float, tuple[int, int]] | None:
    """Return the frames, frames per second and sides of a video, without decoding; None if it cannot be read."""
    try:
        with open_video(path) as container:
            stream = video_stream(container)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            frames = stream.frames
            if not frames and container.duration:
                frames = round(container.duration / av.time_base * rate)
            if not frames:
                frames = sum(packet.size > 0 for packet in container.demux(stream))
            return (frames, rate, (stream.width, stream.height)) if frames and stream.width else None
    except (RefusedFormat, NoVideoStream, NoDecoder, OSError, av.FFmpegError):
        return None
