"""`motionmae curves`: draw the losses of runs, and compare them with predicting the mean."""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from motionmae.commands.app import Command
from motionmae.errors import UserError
from motionmae.files import output_file

if TYPE_CHECKING:
    from rich.table import Table

    from motionmae.runs.history import RunHistory

_EPILOG = """\
examples:
  motionmae curves runs/demo
  motionmae curves runs/vitb_ssv2 runs/videomae_vitb_ssv2 --out compared.png
  motionmae curves runs/ut_interaction --held-out data/ut_interaction/val
"""
_HEADS = {"space": "loss_space", "time": "loss_time"}
_LAST_ROWS = 5
"""Number of logged rows that are averaged into "last loss"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=output_file, help="PNG to write (default: curves.png in the first run's folder)")
    parser.add_argument(
        "--held-out", metavar="SHARDS", help="also print the explained variance on at most 256 clips of these shards"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the table as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the picture and print the table."""
    from rich.console import Console

    from motionmae.evaluation.loss_curves import plot_curves, read_history
    from motionmae.evaluation.mean_baseline import explained_variance
    from motionmae.files import write_atomically

    histories = [read_history(folder) for folder in arguments.folders]
    marks = [_marks(folder) for folder in arguments.folders]
    explained = [explained_variance(run, arguments.held_out) if arguments.held_out else {} for run in arguments.folders]
    out = arguments.out or arguments.folders[0] / "curves.png"
    plot_curves(histories, marks, out)
    figures = [row for of_run in zip(histories, marks, explained, strict=True) for row in _figures(*of_run)]
    Console(soft_wrap=True).print(_table(figures))
    print(f"wrote {out}")
    if arguments.json:
        write_atomically(arguments.json, json.dumps(figures, indent=1).encode())
    return 0


def _marks(folder: Path) -> dict[str, float]:
    """Losses of predicting the mean; empty if the run's shards are not on this machine."""
    from motionmae.config import load_config
    from motionmae.evaluation.mean_baseline import mean_baseline_losses

    try:
        return mean_baseline_losses(load_config(str(folder / "config.yaml")))
    except UserError as error:
        print(f"note: {folder.name}: the loss of predicting the mean is left out ({error})")
        return {}


def _figures(history: "RunHistory", mark: dict[str, float], explained: dict[str, float]) -> list[dict[str, Any]]:
    """One row per trained head. The last few losses are averaged because the loss of one step is noisy."""
    finite = {head: [row[key] for row in history.rows if row[key] is not None] for head, key in _HEADS.items()}
    return [
        {
            "run": history.name,
            "head": head,
            "steps": history.rows[-1]["step"],
            "first": losses[0],
            "last": fmean(losses[-_LAST_ROWS:]),
            "predicting_the_mean": mark.get(head),
        }
        | ({"explained_held_out": explained[head]} if explained else {})
        for head, losses in finite.items()
        if any(losses)
    ]


def _table(figures: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("run", min_width=max(len(row["run"]) for row in figures))  # keep names whole for copying
    headings = ["head", "steps", "first loss", "last loss", "predicting the mean", "last / mean"]
    if held_out := "explained_held_out" in figures[0]:
        headings.append("explained, held out")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "head" else "right", min_width=len(heading))
    for row in figures:
        mean = row["predicting_the_mean"]
        compared = ("", "") if mean is None else (f"{mean:.4f}", f"{row['last'] / mean:.2f}")
        explained = [f"{row['explained_held_out']:.3f}"] if held_out else []
        losses = (f"{row[key]:.4f}" for key in ("first", "last"))
        table.add_row(row["run"], row["head"], str(row["steps"]), *losses, *compared, *explained)
    return table


COMMAND = Command(
    add_arguments,
    run,
    description="Draw losses, learning rate and throughput of runs, and print the first and last value of each loss.",
    epilog=_EPILOG,
)
