"""Plan the content of every shard before the first video is decoded, and lock the folder of the shards.

Only the list of videos and the seed determine the shard of each video. The bytes of a shard do not depend on the number
of workers, on interruptions, or on damage to other videos: a quarantined video leaves its key unused.

With ``segment_seconds``, the number of samples of a video is known only when it is decoded. Each video then has shards
of its own, ``SPLIT-000000-0000.tar`` and so on: shard j holds its segments from j * samples_per_shard on. A shard made
again therefore holds the same samples, and the videos may be decoded in any order.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import simplejpeg

from data_tools.annotations import Split, VideoRecord
from data_tools.decode import FrameSettings
from data_tools.quarantine import QUARANTINE, refuse_foreign_quarantine
from data_tools.reporting import refuse_differences
from motionmae.data.shards.format import FORMAT_VERSION
from motionmae.data.shards.limits import MAX_SAMPLES as MAX_PER_SHARD
from motionmae.data.shards.manifest import MANIFEST
from motionmae.data.shards.publish import index_path, pending_index, temporary_path
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.json_text import InvalidJsonError, JsonModel, load_json
from motionmae.locks import acquire

STATE = ".make_shards"
"""Folder in OUT with ``plan.json``, locks, and a file ``NAME.json`` that marks the shard NAME as finished."""
MAX_SAMPLES = 64
"""Default maximum of videos per shard. At short side 256, a shard of K400 then has about 400 MB."""
MIN_SHARDS = 16
"""Approximate minimum of shards. Small data sets get smaller shards, to have enough to distribute and shuffle."""
_PART_LOCK = re.compile(r"lock\.\d+of(\d+)", re.ASCII)


@dataclass(frozen=True)
class PlannedShard:
    """One shard and its videos."""

    name: str  # file name, ``SPLIT-000000.tar``
    videos: tuple[tuple[str, VideoRecord], ...]  # (sample key, video) in stored order; one video if it is in segments

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")

    def file_of_segments(self, number: int) -> str:
        """Return the name of the ``number``-th shard of a video in segments."""
        return f"{self.stem}-{number:04d}.tar"

    def number_of_file(self, name: str) -> int | None:
        """Return the number of a shard of this video in segments; None if ``name`` is another file."""
        match = re.fullmatch(rf"{re.escape(self.stem)}-(\d{{4,9}})\.tar", name, re.ASCII)
        return int(match[1]) if match and name == self.file_of_segments(int(match[1])) else None

    def has_file(self, name: str) -> bool:
        return name == self.name or self.number_of_file(name) is not None


def segment_key(key: str, segment: int) -> str:
    """Return the sample key of a segment. It begins with the key of its video."""
    return f"{key}-{segment:05d}"


def segment_of(key: str, name: str) -> int | None:
    """Return the number of the segment with the sample key ``name``; None if it is no segment of the video ``key``."""
    match = re.fullmatch(rf"{key}-(\d{{5,9}})", name, re.ASCII)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class ShardPlan:
    """Plan of all shards, with the settings that determine their content."""

    dataset: str
    split: Split
    frames: FrameSettings
    shards: tuple[PlannedShard, ...]  # all shards, including finished ones
    samples_per_shard: int
    settings: Mapping[str, Any]  # all settings that change the bytes
    versions: Mapping[str, str]  # versions of the libraries that change the bytes

    @property
    def num_videos(self) -> int:
        """Number of videos in the planned shards, including videos that cannot be stored."""
        return sum(len(shard.videos) for shard in self.shards)

    @property
    def encoding(self) -> str:
        """Encoding of the frames, a key of motionmae.data.shards.format.ENCODINGS."""
        return "raw" if self.frames.raw else "jpeg"

    def part(self, number: int, parts: int) -> "ShardPlan":
        """Return the part of the plan for one of several machines: every ``parts``-th shard from ``number`` on."""
        return replace(self, shards=self.shards[number::parts])


def make_plan(
    dataset: str, split: Split, frames: FrameSettings, seed: int = 0, samples_per_shard: int | None = None
) -> ShardPlan:
    """Assign a key and a shard to every video.

    Videos are sorted by a hash of (seed, name), because the shuffle of a library could change with its version.
    """
    if samples_per_shard is None:
        few = -(-len(split.videos) // MIN_SHARDS)
        samples_per_shard = MAX_SAMPLES if frames.segment_seconds else min(MAX_SAMPLES, few)
    if not 1 <= samples_per_shard <= MAX_PER_SHARD:
        remedy = f"choose 1 to {MAX_PER_SHARD}"
        raise UserError(f"--samples-per-shard {samples_per_shard} is not possible: {remedy}")
    videos = sorted(split.videos, key=lambda video: (_order_hash(seed, video), video.identity, video.label))
    keyed = [(f"{position:08d}", video) for position, video in enumerate(videos)]
    prefix = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in split.name)
    videos_per_shard = 1 if frames.segment_seconds else samples_per_shard
    shards = tuple(
        PlannedShard(f"{prefix}-{number:06d}.tar", tuple(keyed[start : start + videos_per_shard]))
        for number, start in enumerate(range(0, len(keyed), videos_per_shard))
    )
    by_name = sorted(videos, key=lambda video: (video.identity, video.label))
    rows = [json.dumps([video.identity, video.label, video.class_name]) for video in by_name]
    settings = {
        "dataset": dataset,
        "split": split.name,
        "videos": len(videos),
        "videos_hash": hashlib.sha256("".join(rows).encode()).hexdigest()[:16],
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        **asdict(frames),
        "format_version": FORMAT_VERSION,
    }
    for name in (
        "chroma",
        "segment_seconds",
        "images",
    ):  # absent in plans of earlier versions, whose folders can be continued
        if settings[name] == getattr(FrameSettings, name):
            del settings[name]
    return ShardPlan(dataset, split, frames, shards, samples_per_shard, settings, _library_versions(frames))


def _library_versions(frames: FrameSettings) -> dict[str, str]:
    flow = {"opencv": cv2.__version__} if frames.flow else {}
    ffmpeg = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return {"av": av.__version__, **ffmpeg, "simplejpeg": simplejpeg.__version__, **flow}


def _order_hash(seed: int, video: VideoRecord) -> bytes:
    return hashlib.blake2b(f"{seed}:{video.identity}".encode(errors="surrogateescape"), digest_size=16).digest()


class _PlanFile(JsonModel):
    """Content of ``plan.json``."""

    settings: dict[str, Any]
    versions: dict[str, str]


def write_or_check_plan(plan: ShardPlan, out: Path) -> None:
    """Write ``plan.json``, or check that an existing ``plan.json`` is equal to the plan.

    Raises:
        UserError: the folder cannot be written, its shards were planned with different settings, or it holds files of
            another origin under the names of the files that a run writes.
    """
    path = _plan_file(out)
    try:
        if not path.exists():
            foreign = _foreign_files(plan, out)
            if foreign and not path.exists():  # another part may have written the plan just now
                raise UserError(
                    f"--out {out} holds shards that this command did not start, or files with their names "
                    f"({foreign[0]}): choose another folder"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"settings": dict(plan.settings), "versions": dict(plan.versions)})
            return
        refuse_differences(out, _load_plan(out).settings, plan.settings)
        refuse_foreign_quarantine(out)
        _refuse_foreign_manifest(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error}): choose another folder") from error


def check_library_versions(plan: ShardPlan, out: Path) -> None:
    """Raise UserError if library versions differ from those of the first shards. Call this before writing more."""
    refuse_differences(out, _load_plan(out).versions, plan.versions)


def _load_plan(out: Path) -> _PlanFile:
    path = _plan_file(out)
    try:
        return load_json(path, _PlanFile)
    except InvalidJsonError as error:
        raise UserError(
            f"{path} is damaged ({error}): choose another --out, or delete {out} and start again"
        ) from error


def _foreign_files(plan: ShardPlan, out: Path) -> list[str]:
    """Return the names in a folder without a plan that a run would take for its own files, or replace."""
    if not out.exists():
        return []
    shards = [Path(shard.name) for shard in plan.shards]
    shards += [Path(shard.file_of_segments(0)) for shard in plan.shards if plan.frames.segment_seconds]
    names_of = (index_path, pending_index, temporary_path)
    ours = {MANIFEST, QUARANTINE, *(name_of(shard).name for shard in shards for name_of in names_of)}
    return sorted(path.name for path in out.iterdir() if path.name in ours or path.suffix == ".tar")


def _refuse_foreign_manifest(out: Path) -> None:
    """Raise UserError if ``manifest.json`` is JSON of another program. A damaged file is replaced later."""
    path = out / MANIFEST
    try:
        content: object = load_json(path, object)
    except (FileNotFoundError, InvalidJsonError):
        return
    if not (isinstance(content, dict) and "format_version" in content):
        raise UserError(f"{path} was not written by this program: move it away, or choose another --out")


def _plan_file(out: Path) -> Path:
    return out / STATE / "plan.json"


@contextlib.contextmanager
def lock_output(out: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Lock the folder against runs that write the same part, and against runs without --part while a part is written.

    ``part`` is (number, parts), or None without --part. Raise UserError if such a run is writing to the folder, or if
    the folder was started with a different number of parts.
    """
    with contextlib.ExitStack() as locks:
        _lock(locks, out, "lock", shared=part is not None)
        if part is None:  # no other run is writing, so that later runs may use a different number of parts
            for path, _ in _part_locks(out):
                path.unlink()
        else:
            name = f"lock.{part[0]}of{part[1]}"
            _lock(locks, out, name, shared=False)
            if others := {parts for _, parts in _part_locks(out)} - {str(part[1])}:
                (out / STATE / name).unlink()
                raise UserError(
                    f"{out} was started in {others.pop()} parts, but --part names one of {part[1]}: use the "
                    "first number, or leave --part out"
                )
        yield


@contextlib.contextmanager
def lock_new_output(out: Path) -> Iterator[None]:
    """Lock a folder before its plan is made. Raise UserError if it holds tars of another origin or is in use."""
    if not _plan_file(out).exists() and out.is_dir() and any(out.glob("*.tar")):
        raise UserError(f"--out {out} holds tars that this command did not write: choose another folder")
    try:
        (out / STATE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error}): choose another folder") from error
    with lock_output(out):
        yield


def _part_locks(out: Path) -> list[tuple[Path, str]]:
    """Return the lock files of parts, each with its number of parts."""
    matches = [(path, _PART_LOCK.fullmatch(path.name)) for path in (out / STATE).iterdir()]
    return [(path, match[1]) for path, match in matches if match]


def _lock(locks: contextlib.ExitStack, out: Path, name: str, shared: bool) -> None:
    path = out / STATE / name
    try:
        file = locks.enter_context(path.open("a+"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): choose a folder that you may write to") from error
    with contextlib.suppress(OSError):  # the network disk does not support locks
        if not acquire(file, shared=shared):
            raise UserError(f"another make_shards is writing to {out}: wait for it, or stop it")
