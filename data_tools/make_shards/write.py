"""Write the planned shards with one thread per open shard, and decoding processes that the threads share.

There is one more thread than processes, so that all processes decode while a thread flushes a shard to a slow disk. A
restarted run continues with the shards that are not marked as finished. ``manifest.json`` is written last.
"""

import contextlib
import errno
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from data_tools.annotations import VideoRecord
from data_tools.decode import DecodedVideo, QuarantineReason, UndecodableVideo
from data_tools.decode_worker import DecodeWorker, WorkerStopped
from data_tools.make_shards.shard_plan import QUARANTINE, STATE, PlannedShard, ShardPlan, check_library_versions
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import ShardEntry, ShardWriter, index_path, shard_is_complete
from motionmae.data.shards.manifest import MANIFEST, EncoderSettings, Manifest, write_manifest
from motionmae.errors import UserError
from motionmae.files import write_atomically

_PROGRESS_SECONDS = 0.1


@dataclass
class Counts:
    """Progress of a shard or of the whole data set."""

    videos: int = 0  # processed videos, stored or not
    frames: int = 0  # stored frames
    bytes: int = 0  # bytes of the stored frames
    damaged: list[str] = field(default_factory=list)  # videos stored without their damaged packets
    quarantine: list[dict[str, str]] = field(default_factory=list)  # rows of quarantine.jsonl

    @property
    def stored(self) -> int:
        return self.videos - len(self.quarantine)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row["reason"] for row in self.quarantine)

    def add(self, other: "Counts") -> None:
        self.videos += other.videos
        self.frames += other.frames
        self.bytes += other.bytes
        self.damaged.extend(other.damaged)
        self.quarantine.extend(other.quarantine)


@dataclass(frozen=True)
class ShardRecord:
    """Content of ``OUT/.make_shards/NAME.json``, the file that marks a shard as finished."""

    counts: Counts
    entry: ShardEntry | None  # manifest entry; None if none of the videos could be stored


def load_record(out: Path, shard: PlannedShard) -> ShardRecord | None:
    """Load the record of a finished shard. Return None if the shard is unfinished, or has changed since."""
    try:
        content = json.loads(record_path(out, shard).read_bytes())
        entry = content["entry"] and ShardEntry(**content["entry"])
        intact = entry is None or shard_is_complete(out / shard.name, entry)
        return ShardRecord(Counts(**content["counts"]), entry) if intact else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_finished(plan: ShardPlan, out: Path) -> Manifest | None:
    """Load the manifest of a finished folder. Return None if it is missing or damaged, or if a shard has changed."""
    with contextlib.suppress(UserError):
        manifest = load_manifest(out)
        return manifest if manifest.shards == _finished_entries(plan, out) else None
    return None


def _finished_entries(plan: ShardPlan, out: Path) -> tuple[ShardEntry, ...] | None:
    """Return the manifest entries of all planned shards, or None if a shard is missing or damaged."""
    records = [load_record(out, shard) for shard in plan.shards]
    if None in records:
        return None
    return tuple(record.entry for record in records if record and record.entry)


def record_path(out: Path, shard: PlannedShard) -> Path:
    return out / STATE / f"{Path(shard.name).stem}.json"


def begin_retry(plan: ShardPlan, out: Path, part: tuple[int, int] | None = None) -> int | None:
    """Mark the shards that lack a video as unfinished. Return their number, or None if a stopped retry continues.

    A marker file exists until all these shards are made again. A stopped retry therefore does not start over. ``part``
    is (number, parts). Raise UserError if the shards were made with different library versions.
    """
    check_library_versions(plan, out)
    marker = _retry_marker(out, part)
    if marker.exists():
        return None
    incomplete = [shard for shard in plan.shards if (record := load_record(out, shard)) and record.counts.quarantine]
    for shard in incomplete:
        record_path(out, shard).unlink()
    write_atomically(marker, b"")
    return len(incomplete)


def end_retry(out: Path, part: tuple[int, int] | None = None) -> None:
    """Delete the marker file of a part; without ``part``, delete the marker files of the whole and of all parts."""
    for path in [_retry_marker(out, part)] if part else (out / STATE).glob("retry*"):
        path.unlink(missing_ok=True)


def _retry_marker(out: Path, part: tuple[int, int] | None) -> Path:
    return out / STATE / ("retry" if part is None else f"retry.{part[0]}of{part[1]}")


def write_shards(
    plan: ShardPlan,
    out: Path,
    workers: int,
    stall_timeout: float,
    on_progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Write every planned shard that is not finished.

    Args:
        workers: number of decoding processes.
        stall_timeout: seconds without a frame after which a video is quarantined.
        on_progress: called several times per second in the calling thread.

    Returns:
        The counts over all planned shards, including shards that were finished before.

    Raises:
        UserError: the folder cannot be written, for example because the disk is full, or earlier shards were made with
            different library versions.
        KeyboardInterrupt: after Ctrl-C, when the processes have ended. Finished shards are kept.
    """
    total = Counts()
    records = [load_record(out, shard) for shard in plan.shards]
    for record in filter(None, records):
        total.add(record.counts)
    pending = [shard for shard, record in zip(plan.shards, records, strict=True) if record is None]
    if pending:
        check_library_versions(plan, out)
        (out / MANIFEST).unlink(missing_ok=True)  # a manifest would mark the folder as complete
    decoders = [DecodeWorker(plan.frames, stall_timeout) for _ in range(min(workers, len(pending)))]
    writer = _Writer(plan, out, decoders, total)
    resource_tracker.ensure_running()  # its start unblocks Ctrl-C in the thread that starts it
    block_interrupts = partial(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit the mask
    with ThreadPoolExecutor(workers + 1, initializer=block_interrupts) as pool:
        futures = [pool.submit(writer.write, shard) for shard in pending]
        try:
            while wait(futures, _PROGRESS_SECONDS, FIRST_EXCEPTION).not_done and not any(map(_failure, futures)):
                on_progress(total)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for decoder in decoders:
                decoder.stop()
    for failure in filter(None, map(_failure, futures)):
        if isinstance(failure, OSError):  # an error of the disk of OUT; videos with errors are quarantined
            remedy = "free space" if failure.errno in (errno.ENOSPC, errno.EDQUOT) else "repair the disk"
            raise UserError(f"{out} cannot be written ({failure}): {remedy} and repeat the command") from failure
        raise failure
    on_progress(total)
    return total


def _failure(future: "Future[None]") -> BaseException | None:
    """Return the exception of a future that is done, or None if it succeeded, was stopped or was cancelled."""
    if not future.done() or future.cancelled():
        return None
    error = future.exception()
    return None if isinstance(error, WorkerStopped) else error


class _Writer:
    """Writer of shards, with decoding processes that its threads share."""

    def __init__(self, plan: ShardPlan, out: Path, decoders: Sequence[DecodeWorker], total: Counts):
        self._plan, self._out, self._total = plan, out, total
        self._total_lock = threading.Lock()
        self._idle: SimpleQueue[DecodeWorker] = SimpleQueue()
        for decoder in decoders:
            self._idle.put(decoder)

    def write(self, shard: PlannedShard) -> None:
        counts = Counts()
        path = self._out / shard.name
        with ShardWriter(path, self._plan.encoding) as writer:
            for key, video in shard.videos:
                added = self._write_video(writer, key, video)
                counts.add(added)
                with self._total_lock:
                    self._total.add(added)
        if not counts.stored:  # readers cannot use a shard without samples
            path.unlink()
            index_path(path).unlink()
        record = {"counts": vars(counts), "entry": vars(writer.entry) if counts.stored else None}
        write_atomically(record_path(self._out, shard), json.dumps(record, sort_keys=True).encode())

    def _write_video(self, writer: ShardWriter, key: str, video: VideoRecord) -> Counts:
        try:
            if video.path is None:
                raise UndecodableVideo(QuarantineReason.MISSING, "the annotations name it, but the file does not exist")
            decoded = self._decode(video.path)
        except UndecodableVideo as error:
            row = {"path": video.source, "reason": error.reason.value, "error": error.detail}
            return Counts(videos=1, quarantine=[row])
        writer.write(key, decoded.jpegs, _sample_json(video, decoded, self._plan.frames.stride), decoded.flows)
        damaged = [video.source] if decoded.damaged_packets else []
        return Counts(1, len(decoded.jpegs), sum(map(len, decoded.jpegs)), damaged)

    def _decode(self, path: Path) -> DecodedVideo:
        decoder = self._idle.get()
        try:
            return decoder.decode(path)
        finally:
            self._idle.put(decoder)


def _sample_json(video: VideoRecord, decoded: DecodedVideo, stride: int) -> dict[str, Any]:
    """Return the content of KEY.json: all keys in motionmae.data.shards.format.META_KEYS, and decoding results."""
    return {
        "label": video.label,
        "class_name": video.class_name,
        "source": video.source,
        "fps": decoded.fps,
        "frames": len(decoded.jpegs),
        "stride": stride,
        "height": decoded.height,
        "width": decoded.width,
        "times": decoded.times,
        "windows": decoded.windows,
        "source_frames": decoded.source_frames,
        "damaged_packets": decoded.damaged_packets,
    }


def finish(plan: ShardPlan, out: Path, total: Counts) -> Manifest:
    """Write ``quarantine.jsonl``, then ``manifest.json``.

    Raises:
        UserError: a shard is missing or damaged, or was made with different library versions.
    """
    check_library_versions(plan, out)
    entries = _finished_entries(plan, out)
    if entries is None:
        raise UserError(f"finished shards of {out} have changed during this run: repeat the command")
    rows = sorted(total.quarantine, key=lambda row: row["path"])
    lines = [json.dumps({name: row[name] for name in ("path", "reason", "error")}) + "\n" for row in rows]
    write_atomically(out / QUARANTINE, "".join(lines).encode())
    frames, split = plan.frames, plan.split
    window = frames.window if frames.clips else 0
    manifest = Manifest(
        dataset=plan.dataset,
        split=split.name,
        class_names=split.class_names,
        encoder=EncoderSettings(
            frames.short_side, frames.quality, frames.stride, frames.clips, frames.flow, plan.encoding, window
        ),
        shards=entries,
        quarantined=len(rows),
        split_file=split.split_file,
        split_sha256=split.split_sha256,
        versions=plan.versions,
    )
    write_manifest(out, manifest)
    return manifest
