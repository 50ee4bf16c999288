"""The table, from the files of the runs: means and spreads of what is there, and what is not is said to be missing."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.evidence.jobs import ARMS, SINGLE_FRAME, USES, Experiment, Row
from motionmae.data.files import write_atomically
from motionmae.errors import UserError

BEGIN, END = "<!-- written by benchmarks/evidence -->", "<!-- end of what benchmarks/evidence wrote -->"


def figures(experiment: Experiment, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A record for each row: its arm, seed, use and run, and top-1 in percent, None where it was not run to the end."""
    last = [(row, experiment.jobs(row)[-1]) for row in rows]
    return [
        {"arm": row.arm, "seed": row.seed, "use": row.use, "run": job.config.name, "top1": job.top1()}
        for row, job in last
    ]


def as_markdown(found: Sequence[dict[str, Any]]) -> str:
    """The records as text: a line an arm, a column a use."""
    uses = [use for use in USES if use != SINGLE_FRAME and any(record["use"] == use for record in found)]
    lines: list[str] = []
    if uses:
        lines = [f"| pre-training | {' | '.join(USES[use].title for use in uses)} |", f"|---{'|---' * len(uses)}|"]
        for arm in ARMS:
            cells = [_cell([r["top1"] for r in found if (r["arm"], r["use"]) == (arm, use)]) for use in uses]
            if any(cells):
                lines.append(f"| {ARMS[arm].title} | {' | '.join(cells)} |")
    single = [record["top1"] for record in found if record["use"] == SINGLE_FRAME]
    if single:
        title = USES[SINGLE_FRAME].title
        lines += ["", f"{title[0].upper()}{title[1:]}: {_cell(single)}."]
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    """Mean ± standard deviation (each seed); rows asked for and not run are said to be so."""
    there = [value for value in values if value is not None]
    if not values:
        return ""
    if not there:
        return "not yet run"
    text = f"{mean(there):.1f}"
    if len(there) > 1:
        text += f" ± {stdev(there):.1f} ({', '.join(f'{value:.1f}' for value in there)})"
    missing = len(values) - len(there)
    return text + (f", {missing} of {len(values)} seeds not yet run" if missing else "")


def write_between_marks(page: Path, text: str) -> None:
    """Put ``text`` between the two marks of a page, in place of what stood there.

    Raises:
        UserError: the page has no such marks.
    """
    content = page.read_text() if page.is_file() else ""
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} has no lines {BEGIN!r} and {END!r}: put them where the table is to stand")
    write_atomically(page, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())
