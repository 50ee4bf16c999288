"""Carry a plan out: a thread a shard, killable decoding processes that the threads share, a record a finished shard.

There is one thread more than there are processes: while one shard is flushed to a slow disk, all processes decode.

A shard counts as done once ``OUT/.make_shards/NAME.json`` names its quarantined videos; it is written after the shard
itself. A run that was killed goes on with the other shards; ``manifest.json`` comes last.
"""

import contextlib
import errno
import fcntl
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from data_tools.annotations import VideoRecord
from data_tools.decode import Decoded, Reason, Undecodable
from data_tools.decode_worker import DecodeWorker, Stopped
from data_tools.make_shards.shard_plan import STATE, Plan, ShardPlan
from motionmae.data.shards.format import ShardEntry, ShardWriter, index_path, shard_is_complete
from motionmae.data.shards.manifest import MANIFEST, EncoderSettings, Manifest, write_manifest
from motionmae.errors import UserError
from motionmae.files import write_atomically

QUARANTINE = "quarantine.jsonl"
"""Rows path, reason, error: every video of the list that is in no shard."""

_COUNTING = threading.Lock()
_WATCH_SECONDS = 0.1


@dataclass
class Counts:
    """What has been done so far."""

    videos: int = 0
    """Videos dealt with, stored or not."""
    frames: int = 0
    """Stored frames."""
    bytes: int = 0
    """Bytes of stored frames."""
    damaged: list[str] = field(default_factory=list)
    """Videos stored without the packets that do not decode."""
    quarantine: list[dict[str, str]] = field(default_factory=list)
    """Rows of quarantine.jsonl."""

    @property
    def stored(self) -> int:
        """Videos that are in shards."""
        return self.videos - len(self.quarantine)

    @property
    def reasons(self) -> Counter[str]:
        """How many videos are quarantined for each reason."""
        return Counter(row["reason"] for row in self.quarantine)

    def add(self, other: "Counts") -> None:
        """Count another part of the data set in."""
        self.videos += other.videos
        self.frames += other.frames
        self.bytes += other.bytes
        self.damaged.extend(other.damaged)
        self.quarantine.extend(other.quarantine)


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard, ``OUT/.make_shards/NAME.json``."""

    tally: Counts
    """Its videos."""
    entry: ShardEntry | None
    """Its row of the manifest; None: not one of its videos could be stored."""

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        content = {"tally": vars(self.tally), "entry": self.entry and vars(self.entry)}
        write_atomically(path, json.dumps(content, sort_keys=True).encode())


def load_record(out: Path, shard: ShardPlan) -> ShardRecord | None:
    """The record of a finished shard, or None if it is not finished, or no longer what was written."""
    try:
        content = json.loads(record_path(out, shard).read_bytes())
        entry = content["entry"] and ShardEntry(**content["entry"])
        record = ShardRecord(Counts(**content["tally"]), entry)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if entry is None or shard_is_complete(out / shard.name, entry) else None


def entries_of(plan: Plan, out: Path) -> tuple[ShardEntry, ...] | None:
    """The rows of the manifest that finishes the plan; None while shards are missing or damaged."""
    records = [load_record(out, shard) for shard in plan.shards]
    if None in records:
        return None
    return tuple(record.entry for record in records if record and record.entry)


def record_path(out: Path, shard: ShardPlan) -> Path:
    """Where the record of a shard lies."""
    return out / STATE / f"{Path(shard.name).stem}.json"


@contextlib.contextmanager
def only_run(out: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Refuse a second run of the same part, or of the whole beside a part, while the first still writes.

    Args:
        out: folder of the shards.
        part: (number, parts); None for the whole.

    Raises:
        UserError: it is written to, or parts of another count were begun: the shards of a part would not be its own.
    """
    with contextlib.ExitStack() as locks:
        _lock(locks, out, "lock", shared=part is not None)
        if part is None:  # alone now: parts may be of another count from here on
            for path in (out / STATE).glob("lock.*of*"):
                path.unlink()
        else:
            number, parts = part
            _lock(locks, out, f"lock.{number}of{parts}", shared=False)
            counts = {path.name.rpartition("of")[2] for path in (out / STATE).glob("lock.*of*")}
            if others := counts - {str(parts)}:
                (out / STATE / f"lock.{number}of{parts}").unlink()
                raise UserError(
                    f"{out} was begun in {others.pop()} parts, this is one of {parts}: keep to their number, or go on "
                    "without --part"
                )
        yield


def _lock(locks: contextlib.ExitStack, out: Path, name: str, shared: bool) -> None:
    path = out / STATE / name
    try:
        file = locks.enter_context(path.open("a+"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): make shards where you may write") from error
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another make_shards is writing to {out}: wait for it, or stop it") from None
    except OSError:  # a network disk without locks
        pass


def write_shards(
    plan: Plan, out: Path, workers: int, patience: float, watch: Callable[[Counts], None] = lambda tally: None
) -> Counts:
    """Write every shard of the plan that is not there yet.

    Args:
        plan: the layout; ``write_or_check_plan`` was called with it.
        out: folder of the shards.
        workers: decoding processes.
        patience: seconds without a frame after which a video is given up.
        watch: called several times a second with the tally, from this thread.

    Returns:
        The tally of the whole plan, finished shards included.

    Raises:
        UserError: the folder cannot be written, e.g. because the disk is full.
        KeyboardInterrupt: passed on after the processes have ended; whole shards stay.
    """
    total = Counts()
    pending: SimpleQueue[ShardPlan] = SimpleQueue()
    for shard in plan.shards:
        record = load_record(out, shard)
        if record is None:
            pending.put(shard)
        else:
            total.add(record.tally)
    if not pending.empty():
        (out / MANIFEST).unlink(missing_ok=True)  # the folder is not complete until it is written again
    decoders = [DecodeWorker(plan.frames, patience) for _ in range(min(workers, pending.qsize()))]
    idle: SimpleQueue[DecodeWorker] = SimpleQueue()
    for decoder in decoders:
        idle.put(decoder)
    resource_tracker.ensure_running()  # started by a thread, it would undo that thread's deafness to Ctrl-C
    pool = [_Writer(plan, out, idle, pending, total) for _ in range(min(workers + 1, pending.qsize()))]
    try:
        for writer in pool:
            writer.start()
        while any(writer.is_alive() for writer in pool) and not any(writer.failure for writer in pool):
            watch(total)
            time.sleep(_WATCH_SECONDS)
    finally:
        for decoder in decoders:
            decoder.stop()
        for writer in filter(threading.Thread.is_alive, pool):
            writer.join()
    for failure in filter(None, (writer.failure for writer in pool)):
        if isinstance(failure, OSError):  # a video's own errors are in the quarantine
            remedy = "make room" if failure.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
            raise UserError(
                f"{out} cannot be written ({failure}): {remedy} and run the same command again"
            ) from failure
        raise failure
    watch(total)
    return total


class _Writer(threading.Thread):
    """Takes shards from the queue and writes them, until none is left."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        idle: "SimpleQueue[DecodeWorker]",
        pending: "SimpleQueue[ShardPlan]",
        total: Counts,
    ):
        super().__init__(daemon=True)
        self.failure: BaseException | None = None
        self._plan, self._out, self._idle, self._pending, self._total = plan, out, idle, pending, total

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by decoders: Ctrl-C is not for them
        try:
            while True:
                self._write(self._pending.get_nowait())
        except (Empty, Stopped):
            pass
        except BaseException as error:  # the main thread raises it
            self.failure = error

    def _write(self, shard: ShardPlan) -> None:
        tally = Counts()
        path = self._out / shard.name
        with ShardWriter(path, self._plan.encoding) as writer:
            for key, row in shard.rows:
                video = self._write_video(writer, key, row)
                tally.add(video)
                with _COUNTING:
                    self._total.add(video)
        if not tally.stored:  # a shard without samples is of no use to a reader
            path.unlink()
            index_path(path).unlink()
        ShardRecord(tally, writer.entry if tally.stored else None).write(record_path(self._out, shard))

    def _write_video(self, writer: ShardWriter, key: str, row: VideoRecord) -> Counts:
        try:
            if row.path is None:
                raise Undecodable(Reason.MISSING, "the annotations name it, but it is not there")
            decoded = self._decode(row.path)
        except Undecodable as error:
            fault = {"path": row.source, "reason": error.reason.value, "error": error.detail}
            return Counts(videos=1, quarantine=[fault])
        writer.write(key, decoded.jpegs, _meta(row, decoded, self._plan.frames.stride), decoded.flows)
        damaged = [row.source] if decoded.damaged_packets else []
        return Counts(1, len(decoded.jpegs), sum(map(len, decoded.jpegs)), damaged)

    def _decode(self, path: Path) -> Decoded:
        decoder = self._idle.get()
        try:
            return decoder.decode(path)
        finally:
            self._idle.put(decoder)


def _meta(row: VideoRecord, decoded: Decoded, stride: int) -> dict[str, Any]:
    """KEY.json: what the format asks for (``motionmae.data.shards.format.META_KEYS``), and what decoding found."""
    return {
        "label": row.label,
        "class_name": row.class_name,
        "source": row.source,
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


def finish(plan: Plan, out: Path, total: Counts) -> Manifest:
    """Write ``quarantine.jsonl``, then ``manifest.json``, from the records of all shards.

    Raises:
        UserError: a shard was lost or damaged since it was written.
    """
    entries = entries_of(plan, out)
    if entries is None:
        raise UserError(f"finished shards of {out} were changed meanwhile: run the same command again")
    rows = sorted(total.quarantine, key=lambda row: row["path"])
    lines = [json.dumps({name: row[name] for name in ("path", "reason", "error")}) + "\n" for row in rows]
    write_atomically(out / QUARANTINE, "".join(lines).encode())
    frames, listing = plan.frames, plan.listing
    manifest = Manifest(
        dataset=plan.dataset,
        split=listing.split,
        class_names=listing.class_names,
        encoder=EncoderSettings(
            frames.short_side,
            frames.quality,
            frames.stride,
            frames.clips,
            frames.flow,
            plan.encoding,
            frames.window if frames.clips else 0,
        ),
        shards=entries,
        quarantined=len(rows),
        split_file=listing.split_file,
        split_sha256=listing.split_sha256,
        versions=plan.versions,
    )
    write_manifest(out, manifest)
    return manifest
