"""Table of the results: mean and standard deviation over the seeds, and the number of missing trials."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.experiments.evidence.jobs import ARMS, SINGLE_FRAME, USES, Job, Trial
from motionmae.errors import UserError
from motionmae.files import write_atomically

BEGIN, END = (
    "<!-- written by benchmarks/experiments/evidence -->",
    "<!-- end of what benchmarks/experiments/evidence wrote -->",
)


def results(jobs: Mapping[Trial, Sequence[Job]], data: str, known: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a record for each trial and each known result: arm, seed, use, run, data, and top-1 in percent.

    A result in the run folder takes precedence over a known one. Top-1 is None for an unfinished trial.

    Args:
        jobs: jobs of each trial; the last job gives the result.
        data: :func:`benchmarks.experiments.evidence.data.describe`.
        known: records of :func:`read_known`.
    """
    found = {record["run"]: dict(record) for record in known}
    for trial, (*_, job) in jobs.items():
        name, top1 = job.config.name, job.top1()
        if top1 is not None or name not in found:
            found[name] = {**asdict(trial), "run": name, "data": data, "top1": top1}
    arms, uses = list(ARMS), list(USES)
    return sorted(found.values(), key=lambda r: (uses.index(r["use"]), arms.index(r["arm"]), r["seed"]))


def read_known(path: Path, data: str) -> list[dict[str, Any]]:
    """Read the records of finished runs on the same data from a file that ``--json`` wrote.

    Raises:
        UserError: the file has another content.
    """
    try:
        records = json.loads(path.read_text())
        if not isinstance(records, list):
            raise TypeError("not a list")
        finished = [record for record in records if record["top1"] is not None and record["data"] == data]
        for record in finished:
            named = record["arm"] in ARMS and record["use"] in USES and isinstance(record["run"], str)
            if not named or not isinstance(record["seed"], int) or not 0 <= record["top1"] <= 100:
                raise ValueError(f"invalid record {record}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} contains no results ({error!r}): --known takes a file that --json wrote") from None
    return finished


def as_markdown(found: Sequence[dict[str, Any]]) -> str:
    """Return the records as a table with a line per arm and a column per use."""
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
    """Return mean ± standard deviation (value of each seed), and the number of missing seeds."""
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
    """Replace the text between the marks BEGIN and END of a page. Raise UserError if a mark is missing."""
    content = page.read_text() if page.is_file() else ""
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} lacks the lines {BEGIN!r} and {END!r}: add them where the table belongs")
    write_atomically(page, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())
