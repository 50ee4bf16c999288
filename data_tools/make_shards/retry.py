"""``--retry``: make those shards again that lack a video.

The files that mark these shards as finished (``OUT/.make_shards/NAME.json``) are deleted. Then a marker file is written
that exists until all these shards are made again. A stopped retry therefore continues instead of starting over.
"""

from pathlib import Path

from data_tools.make_shards.shard_plan import STATE, ShardPlan
from data_tools.make_shards.write import load_record, record_path
from motionmae.files import write_atomically


def begin_retry(plan: ShardPlan, out: Path, part: tuple[int, int] | None = None) -> int | None:
    """Mark the shards that lack a video as not finished.

    Returns the number of these shards, or None if a stopped retry continues. ``part`` is (number, parts).
    """
    marker = _marker(out, part)
    if marker.exists():
        return None
    incomplete = [shard for shard in plan.shards if (record := load_record(out, shard)) and record.counts.quarantine]
    for shard in incomplete:
        record_path(out, shard).unlink()
    write_atomically(marker, b"")
    return len(incomplete)


def end_retry(out: Path, part: tuple[int, int] | None = None) -> None:
    """Delete the marker file of a part; without ``part``, delete the marker files of the whole and of all parts."""
    for path in [_marker(out, part)] if part else (out / STATE).glob("retry*"):
        path.unlink(missing_ok=True)


def _marker(out: Path, part: tuple[int, int] | None) -> Path:
    return out / STATE / ("retry" if part is None else f"retry.{part[0]}of{part[1]}")
