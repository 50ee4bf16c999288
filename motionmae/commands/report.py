"""``python -m motionmae report``: a run, or several beside each other, as one HTML file."""

import argparse
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import output_file

_EXAMPLES = """examples:
  python -m motionmae report runs/demo
  python -m motionmae report runs/vitb_ssv2 runs/videomae_vitb_ssv2 --out compared.html
  python -m motionmae report runs/vitl_k400 --no-pictures

The file needs nothing else: open it in any browser, mail it, keep it."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "report",
        help="write a run's report: curves, goodput, faults, reconstructions, config",
        description="Write one HTML file about a run, or about several runs beside each other.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=output_file, help="file to write (default: report.html in the first RUN)")
    parser.add_argument(
        "--no-pictures", action="store_true", help="leave out the reconstructions, which load the model"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the report and return the exit status."""
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
