"""Loss curves of one or more runs as a picture, drawn from their ``metrics.jsonl`` with every resume marked."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motionmae.errors import UserError

Row = dict[str, Any]

PANELS = (
    ("loss_space", "space head: loss on masked frame cubes"),
    ("loss_time", "time head: loss on masked motion cubes"),
    ("lr", "learning rate"),
    ("clips_per_second", "clips a second"),
)


@dataclass(frozen=True)
class History:
    """What one run logged, as training saw it in the end."""

    name: str
    rows: list[Row]
    """One row a logged step, steps ascending; where a resumed run went over steps again, the newest incarnation's."""
    resumes: list[int]
    """First logged step of every incarnation but the first."""


def read_history(run: Path) -> History:
    """Read ``run/metrics.jsonl``; a torn last line, left by a killed writer, is passed over.

    Raises:
        UserError: if the folder holds no logged step.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is not there: give the folder of a run that has logged a step, for example runs/demo")
    incarnations: dict[str, list[Row]] = {}
    for row in _parse_lines(path.read_text().splitlines()):
        incarnations.setdefault(str(row["incarnation"]), []).append(row)
    if not incarnations:
        raise UserError(f"{path} holds no logged step yet: wait for the first log.every_steps steps of the run")
    rows: list[Row] = []
    resumes: list[int] = []
    for later in incarnations.values():
        first = later[0]["step"]
        if rows:
            resumes.append(first)
        rows = [row for row in rows if row["step"] < first] + later
    return History(run.name, rows, resumes)


def _parse_lines(lines: Iterable[str]) -> Iterable[Row]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def plot_curves(histories: Sequence[History], out: Path) -> None:
    """Write a PNG with a panel each for both losses, the learning rate and the throughput.

    Dashed vertical lines mark where a run was resumed.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for number, history in enumerate(histories):
            colour = f"C{number}"
            steps = [row["step"] for row in history.rows]
            axes.plot(steps, [row[key] for row in history.rows], color=colour, linewidth=1.4, label=history.name)
            for resume in history.resumes:
                axes.axvline(resume, color=colour, linestyle="--", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=9, frameon=False, title="dashed: resumed", title_fontsize=8)
    temporary = out.with_name(f".{out.name}.tmp")
    figure.savefig(temporary, format="png", dpi=130)
    temporary.replace(out)
