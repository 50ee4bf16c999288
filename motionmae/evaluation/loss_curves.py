"""Loss curves of one or more runs as a picture, drawn from their ``metrics.jsonl`` with every resume marked."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from motionmae.errors import UserError
from motionmae.files import atomic_path
from motionmae.runs.history import RunHistory

PANELS = (
    ("loss_space", "space head: loss on masked frame cubes"),
    ("loss_time", "time head: loss on masked motion cubes"),
    ("lr", "learning rate"),
    ("clips_per_second", "clips a second"),
)


def read_history(run: Path) -> RunHistory:
    """The history of a pre-training run with logged steps.

    Raises:
        UserError: if the folder holds no logged step, or those of a fine-tuning, which has one loss.
    """
    history = RunHistory(run)
    if not history.rows:
        raise UserError(
            f"{history.folder.metrics} holds no logged step: give the folder of a run that has begun, such as runs/demo"
        )
    if "loss_space" not in history.rows[-1]:
        raise UserError(f"{run} is a run to finetune, whose one loss TensorBoard shows: give one to pretrain")
    return history


def smoothed(values: Sequence[float]) -> list[float]:
    """A moving mean over a twentieth of the values, around each; of those that are no NaN."""
    reach = len(values) // 40
    around = (values[max(place - reach, 0) : place + reach + 1] for place in range(len(values)))
    finite = ([value for value in part if not math.isnan(value)] for part in around)
    return [fmean(part) if part else math.nan for part in finite]


def plot_curves(histories: Sequence[RunHistory], marks: Sequence[Mapping[str, float]], out: Path) -> None:
    """Write a PNG with a panel each for both losses, the learning rate and the throughput.

    Pale is what was logged, of single steps; strong its moving mean. Dashed vertical lines mark where a run was
    resumed; dotted horizontal ones, the loss of predicting the mean.

    Args:
        histories: the runs.
        marks: for each run, that loss of each head (``space``, ``time``), as far as it is known.
        out: the PNG.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for number, (history, mark) in enumerate(zip(histories, marks, strict=True)):
            colour = f"C{number}"
            if (mean := mark.get(key.removeprefix("loss_"))) is not None:
                axes.axhline(mean, color=colour, linestyle=":", linewidth=1.0)
            values = [math.nan if row[key] is None else row[key] for row in history.rows]
            steps = [row["step"] for row in history.rows]
            if not any(values):  # a head that is not trained: its loss is 0
                steps, values = [], []
            strong = values if key == "lr" else smoothed(values)
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(steps, strong, color=colour, linewidth=1.4, label=history.name)
            for resume in history.resumes:
                axes.axvline(resume, color=colour, linestyle="--", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(
        fontsize=9, frameon=False, title="dashed: resumed; dotted: predicting the mean", title_fontsize=8
    )
    with atomic_path(out, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
