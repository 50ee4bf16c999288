"""``python -m motionmae curves``: how the losses of some runs fell, as a picture and a table."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.evaluation.curves import History, plot_curves, read_history
from motionmae.evaluation.mean_prediction import mean_prediction_losses

_EXAMPLES = """examples:
  python -m motionmae curves runs/demo
  python -m motionmae curves runs/vitb_ssv2 runs/videomae_vitb_ssv2 --out compared.png
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "curves",
        help="draw the losses of runs, and hold them against predicting the mean",
        description="Draw losses, learning rate and throughput of runs; print where each loss started and ended.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, help="PNG to write (default: curves.png in the first run's folder)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the picture, print the table, return the exit status."""
    histories = [read_history(folder) for folder in arguments.folders]
    marks = [_marks(folder) for folder in arguments.folders]
    out = arguments.out or arguments.folders[0] / "curves.png"
    plot_curves(histories, marks, out)
    Console().print(_table(histories, marks))
    print(f"wrote {out}")
    return 0


def _marks(folder: Path) -> dict[str, float]:
    """Losses of predicting the mean; none where the run's shards are not on this machine."""
    try:
        return mean_prediction_losses(load_config(str(folder / "config.yaml")))
    except UserError as error:
        print(f"note: {folder.name}: the loss of predicting the mean is left out ({error})")
        return {}


def _table(histories: list[History], marks: list[dict[str, float]]) -> Table:
    table = Table()
    for heading in ("run", "head", "steps", "first", "last", "predicting the mean", "last / mean"):
        table.add_column(heading, justify="left" if heading in ("run", "head") else "right")
    for history, mark in zip(histories, marks, strict=True):
        for head, key in (("space", "loss_space"), ("time", "loss_time")):
            first, last = history.rows[0][key], history.rows[-1][key]
            if first == last == 0:
                continue  # a head that is not trained
            mean = mark.get(head)
            compared = ("", "") if mean is None else (f"{mean:.4f}", f"{last / mean:.2f}")
            table.add_row(history.name, head, str(history.rows[-1]["step"]), f"{first:.4f}", f"{last:.4f}", *compared)
    return table
