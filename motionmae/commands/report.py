"""`motionmae report`: write one HTML file about a run, or about several side by side."""

import argparse
from pathlib import Path

from motionmae.commands.app import Command
from motionmae.errors import UserError
from motionmae.files import output_file

_EPILOG = """\
examples:
  motionmae report runs/demo
  motionmae report runs/vitb_ssv2 runs/videomae_vitb_ssv2 --out compared.html
  motionmae report runs/vitl_k400 --no-pictures

The file is self-contained: open it in any browser, or mail it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=output_file, help="file to write (default: report.html in the first RUN)")
    parser.add_argument(
        "--no-pictures", action="store_true", help="leave out the reconstructions, which need the model"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    from monitoring.report.page import write_report
    from monitoring.report.pictures import Picture, reconstructions
    from motionmae.runs.history import RunHistory

    histories = [RunHistory(folder).require_events() for folder in arguments.folders]
    pictures: list[Picture] = []
    for folder in [] if arguments.no_pictures else arguments.folders:
        try:
            pictures += reconstructions(folder)
        except (UserError, OSError) as error:  # no checkpoint yet, shards elsewhere, another task
            print(f"note: {folder.name}: no reconstructions ({error})")
    out = arguments.out or arguments.folders[0] / "report.html"
    write_report(histories, out, pictures)
    print(f"wrote {out}")
    return 0


COMMAND = Command(
    add_arguments,
    run,
    description="Write one HTML file about a run, or about several runs side by side.",
    epilog=_EPILOG,
)
