"""``--retry``: the shards that lack a video are made again, and a retry that was stopped goes on where it was.

While it is under way a file beside the records says so; it is written once these shards count as not done, and goes
when all of them are done.
"""

from pathlib import Path

from data_tools.make_shards.shard_plan import STATE, Plan
from data_tools.make_shards.write import load_record, record_path
from motionmae.files import write_atomically


def begin_retry(plan: Plan, out: Path, part: tuple[int, int] | None = None) -> int | None:
    """Take the shards that lack a video as not done, so that their videos are tried again.

    Args:
        plan: what is to be made: all, or a part.
        out: folder of the shards.
        part: (number, parts); None for the whole.

    Returns:
        How many they are; None where a retry was stopped before its end, which then goes on.
    """
    under_way = _marker(out, part)
    if under_way.exists():
        return None
    lacking = [shard for shard in plan.shards if (record := load_record(out, shard)) and record.tally.quarantine]
    for shard in lacking:
        record_path(out, shard).unlink()
    write_atomically(under_way, b"")
    return len(lacking)


def end_retry(out: Path, part: tuple[int, int] | None = None) -> None:
    """All shards are done: those of a part, or of the whole and so of all parts."""
    for path in [_marker(out, part)] if part else (out / STATE).glob("retry*"):
        path.unlink(missing_ok=True)


def _marker(out: Path, part: tuple[int, int] | None) -> Path:
    return out / STATE / ("retry" if part is None else f"retry.{part[0]}of{part[1]}")
