"""Begin and end of ``--retry``: choose the shards that are made again, and mark the retry as unfinished."""

import re
from pathlib import Path

from data_tools.make_shards.records import ShardRecord, record_path
from data_tools.make_shards.shard_plan import STATE, ShardPlan, check_library_versions
from motionmae.files import write_atomically

_MARKER = re.compile(r"retry(\.\d+of\d+)?", re.ASCII)


def begin_retry(
    plan: ShardPlan, out: Path, records: dict[str, ShardRecord], part: tuple[int, int] | None = None
) -> int | None:
    """Mark the shards that lack a video as unfinished. Return their number, or None if a stopped retry continues.

    Their records are deleted from OUT and from ``records``. A marker file exists until all these shards are made again.
    A stopped retry therefore does not start over. ``part`` is (number, parts). Raise UserError if the shards were made
    with different library versions.
    """
    check_library_versions(plan, out)
    marker = _retry_marker(out, part)
    if marker.exists():
        return None
    incomplete = [shard for shard in plan.shards if shard.name in records and records[shard.name].counts.quarantine]
    for shard in incomplete:
        record_path(out, shard).unlink()
        del records[shard.name]
    write_atomically(marker, b"")
    return len(incomplete)


def end_retry(out: Path, part: tuple[int, int] | None = None) -> None:
    """Delete the marker file of a part; without ``part``, delete the marker files of the whole and of all parts."""
    markers = [path for path in (out / STATE).iterdir() if _MARKER.fullmatch(path.name)]
    for path in [_retry_marker(out, part)] if part else markers:
        path.unlink(missing_ok=True)


def _retry_marker(out: Path, part: tuple[int, int] | None) -> Path:
    return out / STATE / ("retry" if part is None else f"retry.{part[0]}of{part[1]}")
