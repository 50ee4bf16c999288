"""Write the planned shards with one thread per open shard, and decoding processes that the threads share.

There is one more thread than processes, so that all processes decode while a thread flushes a shard to a slow disk. A
restarted run continues with the shards that are not marked as finished. ``manifest.json`` is written last. A shard that
is made again keeps its samples if their originals are gone or give no better ones.
"""

import contextlib
import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from data_tools.annotations import VideoRecord
from data_tools.decode import DecodedVideo, QuarantineReason, UndecodableVideo
from data_tools.decode_worker import DecodeWorker, WorkerStopped
from data_tools.make_shards.candidates import decode_first
from data_tools.make_shards.records import Counts, ShardRecord, finished_entries, load_record, save_record
from data_tools.make_shards.shard_plan import PlannedShard, ShardPlan, check_library_versions
from data_tools.quarantine import write_quarantine
from motionmae.data.shards.format import ShardWriter, load_index, shard_is_complete
from motionmae.data.shards.manifest import MANIFEST, EncoderSettings, Manifest, write_manifest
from motionmae.data.shards.stored_samples import StoredSample, StoredSamples
from motionmae.errors import UserError

_PROGRESS_SECONDS = 0.1


def write_shards(
    plan: ShardPlan,
    out: Path,
    workers: int,
    stall_timeout: float,
    on_progress: Callable[[Counts], None] = lambda counts: None,
    retry: bool = False,
) -> Counts:
    """Write every planned shard that is not finished.

    A sample that a shard holds already is never lost: it stays if its original is gone, fails or gives fewer frames.

    Args:
        workers: number of decoding processes.
        stall_timeout: seconds without a frame after which a video is quarantined.
        on_progress: called several times per second in the calling thread.
        retry: copy the sound samples of complete shards, and decode the other videos only.

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
    decoders = [DecodeWorker(plan.frames, stall_timeout) for _ in range(min(workers, len(pending)))]
    writer = _Writer(plan, out, decoders, total, retry)
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


class _NothingNew(Exception):  # noqa: N818 - a reason, not an error
    """The old shard has all that the new one would have."""


class _Writer:
    """Writer of shards, with decoding processes that its threads share."""

    def __init__(self, plan: ShardPlan, out: Path, decoders: Sequence[DecodeWorker], total: Counts, retry: bool):
        self._plan, self._out, self._total, self._retry = plan, out, total, retry
        self._total_lock = threading.Lock()
        self._idle: SimpleQueue[DecodeWorker] = SimpleQueue()
        for decoder in decoders:
            self._idle.put(decoder)

    def write(self, shard: PlannedShard) -> None:
        """Write a shard beside the old one, which it replaces if a sample is new, and whose samples it keeps."""
        path, counts, new = self._out / shard.name, Counts(), 0
        old = StoredSamples(path)
        known = load_index(path)[0] if self._retry and shard_is_complete(path) else None
        with contextlib.suppress(_NothingNew), ShardWriter(path, self._plan.encoding) as writer:
            for key, video in shard.videos:
                stored = old.read(key)
                if stored and stored.meta["label"] != video.label:  # KEY.json has changed, and it has no checksum
                    stored = None
                try:
                    chosen = self._choose(video, stored, known is not None)
                except UndecodableVideo as error:
                    row = {"path": video.source, "reason": error.reason.value, "error": error.detail}
                    added = Counts(videos=1, quarantine=[row])
                else:
                    added = self._store(writer, key, video, chosen)
                    new += isinstance(chosen, DecodedVideo)
                    if isinstance(chosen, StoredSample) and not (known and _is_readable(video.path)):
                        added.kept.append(video.source)
                counts.add(added)
                with self._total_lock:
                    self._total.add(added)
            is_same = known is not None and not new and counts.stored == known.samples
            if is_same or not counts.stored:  # readers cannot use a shard without samples
                raise _NothingNew
            writer.flush()  # the disk may be full, and then the folder stays as it is
            self._prepare_replacement(shard, old, counts)
        entry = writer.entry or (known if counts.stored else None)
        save_record(self._out, shard, ShardRecord(counts, entry))

    def _choose(self, video: VideoRecord, stored: StoredSample | None, is_trusted: bool) -> DecodedVideo | StoredSample:
        """Return the stored sample if the original gives no better one. Raises UndecodableVideo if there is neither.

        A retry (``is_trusted``) does not decode the originals of sound samples, which would give the same bytes.
        """
        if stored and is_trusted and stored.intact and not stored.damaged_packets:
            return stored
        try:
            decoded = self._decode(video)
        except UndecodableVideo:
            if stored is None:
                raise
            return stored
        return stored if stored and _is_better(stored, decoded) else decoded

    def _store(self, writer: ShardWriter, key: str, video: VideoRecord, chosen: DecodedVideo | StoredSample) -> Counts:
        damaged = [video.source] if chosen.damaged_packets else []
        matrices = {video.source: chosen.matrices} if chosen.matrices else {}
        if isinstance(chosen, StoredSample):
            writer.copy(key, chosen.members, chosen.meta)
            return Counts(1, chosen.meta["frames"], chosen.frame_bytes, damaged, matrices)
        writer.write(key, chosen.jpegs, _sample_json(video, chosen, self._plan.frames.stride), chosen.flows)
        substituted = [f"{chosen.source} for {video.source}"] if chosen.source != video.source else []
        return Counts(1, len(chosen.jpegs), sum(map(len, chosen.jpegs)), damaged, matrices, substituted=substituted)

    def _prepare_replacement(self, shard: PlannedShard, old: StoredSamples, counts: Counts) -> None:
        """Delete the manifest, which would mark the folder as complete, and set a shard aside that loses a sample."""
        refused = {row["path"] for row in counts.quarantine}
        if any(old.may_hold(key) for key, video in shard.videos if video.source in refused):
            name = _set_aside(self._out / shard.name)
            with self._total_lock:
                self._total.set_aside.append(name)
        (self._out / MANIFEST).unlink(missing_ok=True)

    def _decode(self, video: VideoRecord) -> DecodedVideo:
        if video.path is None:
            raise UndecodableVideo(QuarantineReason.MISSING, "the annotations name it, but the file does not exist")
        decoder = self._idle.get()
        try:
            return decode_first(video, decoder.decode)
        finally:
            self._idle.put(decoder)


def _is_better(stored: StoredSample, decoded: DecodedVideo) -> bool:
    """Return whether a stored sample has more of its video than the original gives now."""
    now, before = decoded, stored
    return before.intact and (before.source_frames, -before.damaged_packets) > (now.source_frames, -now.damaged_packets)


def _is_readable(path: Path | None) -> bool:
    try:
        return path is not None and os.access(path, os.R_OK) and path.stat().st_size > 0
    except OSError:
        return False


def _set_aside(shard: Path) -> str:
    """Keep a damaged shard under a new name, and return the name."""
    names = (f"{shard.name}.damaged{number or ''}" for number in itertools.count())
    kept = next(path for path in map(shard.with_name, names) if not os.path.lexists(path))
    try:
        kept.hardlink_to(shard)
    except OSError:  # the disk has no hard links
        shard.rename(kept)
    return kept.name


def _sample_json(video: VideoRecord, decoded: DecodedVideo, stride: int) -> dict[str, Any]:
    """Return the content of KEY.json: all keys in motionmae.data.shards.format.META_KEYS, and decoding results."""
    content = {
        "label": video.label,
        "class_name": video.class_name,
        "source": decoded.source,
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
    return content | ({"replaced_matrices": decoded.matrices} if decoded.matrices else {})


def finish(plan: ShardPlan, out: Path, total: Counts) -> Manifest:
    """Write ``quarantine.jsonl``, then ``manifest.json``.

    Raises:
        UserError: a shard is missing or damaged, or was made with different library versions.
    """
    check_library_versions(plan, out)
    entries = finished_entries(plan, out)
    if entries is None:
        raise UserError(f"finished shards of {out} have changed during this run: repeat the command")
    rows = sorted(total.quarantine, key=lambda row: row["path"])
    write_quarantine(out, rows)
    frames, split = plan.frames, plan.split
    window = frames.window if frames.clips else 0
    manifest = Manifest(
        dataset=plan.dataset,
        split=split.name,
        class_names=split.class_names,
        encoder=EncoderSettings(
            frames.short_side,
            frames.quality,
            frames.stride,
            frames.clips,
            frames.flow,
            plan.encoding,
            window,
            frames.chroma,
        ),
        shards=entries,
        quarantined=len(rows),
        split_file=split.split_file,
        split_sha256=split.split_sha256,
        versions=plan.versions,
        replaced_matrices=total.matrices,
    )
    write_manifest(out, manifest)
    return manifest
