"""Write the planned shards with one thread per open shard, and decoding processes that the threads share.

There is one more thread than processes, so that all processes decode while a thread flushes a shard to a slow disk. A
restarted run continues with the shards that are not marked as finished. ``manifest.json`` is written last.
"""

import errno
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

from data_tools.decode_worker import DecodeWorker, WorkerStopped
from data_tools.make_shards.records import Counts, ShardRecord, finished_entries, load_records
from data_tools.make_shards.shard_plan import STATE, ShardPlan, check_library_versions
from data_tools.make_shards.writer import Writer
from data_tools.quarantine import write_quarantine
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.errors import UserError

_PROGRESS_SECONDS = 0.1
_DISK_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or lower --samples-per-shard with another --out,",
}


def write_shards(
    plan: ShardPlan,
    out: Path,
    records: Mapping[str, ShardRecord],
    workers: int,
    stall_timeout: float,
    on_progress: Callable[[Counts], None] = lambda counts: None,
    retry: bool = False,
) -> Counts:
    """Write every planned shard that is not finished.

    A sample that a shard holds already is never lost: it stays if its original is gone, fails or gives fewer frames.

    Args:
        records: records of the finished shards, by the name of the shard.
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
    for shard in plan.shards:
        if shard.name in records:
            total.add(records[shard.name].counts)
    pending = [shard for shard in plan.shards if shard.name not in records]
    if pending:
        check_library_versions(plan, out)
    decoders = [DecodeWorker(plan.frames, stall_timeout, out / STATE) for _ in range(min(workers, len(pending)))]
    writer = Writer(plan, out, decoders, total, retry)
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
            remedy = _DISK_REMEDIES.get(failure.errno or 0, "repair the disk")
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


def finish(plan: ShardPlan, out: Path, total: Counts) -> Manifest:
    """Write ``quarantine.jsonl``, then ``manifest.json``.

    Raises:
        UserError: a shard is missing or damaged, or was made with different library versions.
    """
    check_library_versions(plan, out)
    entries = finished_entries(plan, load_records(plan, out))
    if entries is None:
        raise UserError(f"finished shards of {out} have changed during this run: repeat the command")
    rows = sorted(total.quarantine, key=lambda row: row["path"])
    write_quarantine(out, rows)
    frames, split = plan.frames, plan.split
    manifest = Manifest(
        dataset=plan.dataset,
        split=split.name,
        class_names=split.class_names,
        encoder=EncoderSettings(
            short_side=frames.short_side,
            jpeg_quality=frames.quality,
            stride=frames.stride,
            clips=frames.clips,
            flow_distance=frames.flow,
            encoding=plan.encoding,
            window=frames.window if frames.clips else 0,
            chroma=frames.chroma,
            segment_seconds=frames.segment_seconds,
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
