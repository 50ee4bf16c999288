"""First and last losses of pre-training runs, beside the loss of predicting the mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.runs.history import RunHistory


@dataclass(frozen=True)
class HeadLoss:
    """Loss of one decoder head of a run: the space head, or the motion head (the paper's time head)."""

    run: str
    head: str
    steps: int
    first: float
    last: float
    predicting_the_mean: float | None  # None if the run's shards cannot be read
    explained_held_out: float | None  # explained variance; None without held-out shards


def head_losses(history: RunHistory, held_out: str | None) -> tuple[list[HeadLoss], str]:
    """Return the losses of each trained head, and a message if the loss of predicting the mean cannot be measured.

    The list is empty for a fine-tuning run and for a run without a logged step.

    Args:
        held_out: shards on whose first 256 clips the explained variance is measured; None to leave it out.

    Raises:
        UserError: if the explained variance cannot be measured.
    """
    from motionmae.evaluation.mean_baseline import explained_variance, mean_baseline_losses  # imports torch

    explained = explained_variance(history.folder.path, held_out) if held_out else {}
    keys = {key.removeprefix("loss_"): key for key in history.losses if key in ("loss_space", "loss_time")}
    means: dict[str, float] = {}
    problem = ""
    if keys:
        try:
            means = mean_baseline_losses(load_config(str(history.folder.config)))
        except (UserError, OSError) as error:
            problem = f"{history.name}: the loss of predicting the mean is unknown ({error})"
    losses = []
    for head, key in keys.items():
        first = next(row[key] for row in history.rows if row[key] is not None)
        last, steps = last_loss(history, key), history.rows[-1]["step"]
        losses.append(HeadLoss(history.name, head, steps, first, last, means.get(head), explained.get(head)))
    return losses, problem


def last_loss(history: RunHistory, key: str) -> float:
    """Return the mean of the last logged losses, because the loss of one step is noisy."""
    return fmean([row[key] for row in history.rows if row.get(key) is not None][-5:])


def loss_table(losses: Sequence[HeadLoss]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a table. The explained variance has a column if it was measured."""
    head = ["run", "head", "steps", "first loss", "last loss", "predicting the mean", "last / mean"]
    rows = []
    for loss in losses:
        mean = loss.predicting_the_mean
        compared = ["", ""] if mean is None else [f"{mean:.4f}", f"{loss.last / mean:.2f}"]
        rows.append([loss.run, loss.head, str(loss.steps), f"{loss.first:.4f}", f"{loss.last:.4f}", *compared])
    if any(loss.explained_held_out is not None for loss in losses):
        head.append("explained, held out")
        for row, loss in zip(rows, losses, strict=True):
            row.append("" if loss.explained_held_out is None else f"{loss.explained_held_out:.3f}")
    return head, rows
