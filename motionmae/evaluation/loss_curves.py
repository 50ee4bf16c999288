"""Plot the loss curves of one or more runs from their ``metrics.jsonl``, and mark every resume."""

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
    ("clips_per_second", "clips per second"),
)


def read_history(run: Path) -> RunHistory:
    """Read the history of a pre-training run. Raises UserError for a fine-tuning run or a run without a logged step."""
    history = RunHistory(run)
    if not history.rows:
        raise UserError(
            f"{history.folder.metrics} contains no logged step: "
            "give the folder of a run that has started, such as runs/demo"
        )
    if "loss_space" not in history.rows[-1]:
        raise UserError(f"{run} has task=finetune: give a run with task=pretrain, or see its loss in TensorBoard")
    return history


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the centred moving mean over a window of 1/20 of the values. NaNs are ignored."""
    half = len(values) // 40
    around = (values[max(index - half, 0) : index + half + 1] for index in range(len(values)))
    finite = ([value for value in part if not math.isnan(value)] for part in around)
    return [fmean(part) if part else math.nan for part in finite]


def plot_curves(histories: Sequence[RunHistory], marks: Sequence[Mapping[str, float]], out: Path) -> None:
    """Write a PNG with four panels: both losses, the learning rate and the throughput.

    Thin lines show the logged steps, thick lines their moving mean. Dashed vertical lines mark resumes. Dotted
    horizontal lines mark the loss of the mean baseline. ``marks`` holds this loss for each run by head (``space`` for
    pixels, ``time`` for motion), if it is known.
    """
    from matplotlib.figure import Figure  # slow to import and needed only in this function

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for number, (history, mark) in enumerate(zip(histories, marks, strict=True)):
            colour = f"C{number}"
            if (mean := mark.get(key.removeprefix("loss_"))) is not None:
                axes.axhline(mean, color=colour, linestyle=":", linewidth=1.0)
            values = [math.nan if row[key] is None else row[key] for row in history.rows]
            steps = [row["step"] for row in history.rows]
            if not any(values):  # an untrained head has loss 0
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
