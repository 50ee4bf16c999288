"""The table, from the files of the runs: means and spreads of what is there, and what is not is said to be missing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.evidence.jobs import ARMS, SINGLE_FRAME, USES, Experiment, Row
from motionmae.data.files import write_atomically
from motionmae.errors import UserError

BEGIN, END = "<!-- written by benchmarks/evidence -->", "<!-- end of what benchmarks/evidence wrote -->"


def figures(experiment: Experiment, rows: Sequence[Row], known: Mapping[str, float]) -> list[dict[str, Any]]:
    """A record for each row: its arm, seed, use and run, and top-1 in percent, None where it was not run to the end.

    What lies in the experiment's folder counts before what is ``known`` of a run of that name.
    """
    found = []
    for row in rows:
        job = experiment.jobs(row)[-1]
        top1, name = job.top1(), job.config.name
        record = {"arm": row.arm, "seed": row.seed, "use": row.use, "run": name}
        found.append(record | {"top1": known.get(name) if top1 is None else top1})
    return found


def read_known(path: Path) -> dict[str, float]:
    """Return top-1 by the name of the run, from what ``--json`` wrote.

    Raises:
        UserError: the file is something else.
    """
    try:
        records = json.loads(path.read_text())
        return {str(record["run"]): float(record["top1"]) for record in records if record["top1"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no figures ({error}): --known takes what --json wrote") from None


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
