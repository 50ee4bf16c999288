"""`motionmae report`: write one HTML file about runs or other weights, and compare losses with predicting the mean."""

import argparse
from dataclasses import asdict
from pathlib import Path

from motionmae.commands.app import Command, add_json_argument
from motionmae.errors import UserError
from motionmae.files import write_atomically, write_json
from motionmae.outputs import containing, output_argument, refuse_foreign
from motionmae.runs.directory import RunFolder
from motionmae.text import say

_EPILOG = """\
examples:
  motionmae report runs/demo
  motionmae report runs/vitb_ssv2 runs/videomae_vitb_ssv2 --out compared.html
  motionmae report runs/ut_interaction --held-out data/ut_interaction/val
  motionmae report runs/vitl_k400 --no-pictures
  motionmae report exported

The file is self-contained: open it in any browser, or mail it."""


_PAGE = containing(" - MotionMAE</title>")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    explained = "runs, or other weights: checkpoints, exports, Hugging Face VideoMAE folders, released files"
    parser.add_argument("weights", nargs="+", metavar="WEIGHTS", help=explained)
    out_help = "file to write (default: report.html in the first run, or in results/NAME)"
    parser.add_argument("--out", type=output_argument(_PAGE), help=out_help)
    parser.add_argument("--no-pictures", action="store_true", help="leave out reconstructions, which need the model")
    explained = "also measure the explained variance on at most 256 clips of these shards"
    parser.add_argument("--held-out", metavar="SHARDS", help=explained)
    add_json_argument(parser, "head", "predicting_the_mean", content="table of losses")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print the table of losses."""
    from monitoring.report.losses import HeadLoss, head_losses, loss_table
    from monitoring.report.models import describe_model
    from monitoring.report.page import render
    from monitoring.report.pictures import Picture, reconstructions
    from motionmae.runs.history import RunHistory

    sources = [_find(name) for name in arguments.weights]
    out = arguments.out or sources[0][1] / "report.html"
    refuse_foreign(out, _PAGE)
    histories = [RunHistory(folder).require_events() for run, folder in sources if run]
    models = [describe_model(name) for name, (run, _) in zip(arguments.weights, sources, strict=True) if not run]
    losses: list[HeadLoss] = []
    pictures: list[Picture] = []
    notes: list[str] = []
    for history in histories:
        found, problem = head_losses(history, arguments.held_out)
        losses += found
        notes += [problem] if problem else []
        if arguments.no_pictures:
            continue
        try:
            pictures += reconstructions(history.folder.path)
        except (UserError, OSError) as error:  # no checkpoint yet, shards elsewhere, another task
            notes.append(f"{history.name}: no reconstructions ({error})")
    notes += [note for history in histories for note in history.notes]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, render(histories, pictures, losses, notes, models).encode())
    if losses:
        _print_table(*loss_table(losses))
    for note in notes:
        say(f"note: {note}")
    say(f"wrote {out}")
    if arguments.json:
        write_json(arguments.json, [asdict(loss) for loss in losses])
    return 0


def _find(name: str) -> tuple[bool, Path]:
    """Return whether ``name`` is a run or a checkpoint in it, and the folder of the run or of results."""
    path = Path(name).expanduser()
    if RunFolder(path).events.is_file() or RunFolder(path).config.is_file():
        return True, path
    from motionmae.evaluation.weights_source import find_weights  # imports torch

    source = find_weights(name)
    return source.run is not None, source.results


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    from motionmae.screen import Table, show
    from motionmae.text import cell

    table = Table()
    for number, (heading, *cells) in enumerate(zip(head, *rows, strict=True)):
        width = max(cell(text).cell_len for text in (heading, *cells))  # names stay whole for copying
        table.add_column(heading, justify="right" if number >= 2 else "left", min_width=width)
    for row in rows:
        table.add_row(*row)
    show(table, wrap=False)


COMMAND = Command(
    add_arguments,
    run,
    description="Write one HTML file about a run or other weights, or about several side by side.\n"
    "For pre-training runs, also print the loss of each head beside the loss of predicting the mean.",
    epilog=_EPILOG,
)
