"""``python -m motionmae watch``: a run as it goes, in a terminal."""

import argparse
import threading
import time
from pathlib import Path

from motionmae.errors import UserError

_EXAMPLES = """examples:
  python -m motionmae watch runs/demo
  python -m motionmae watch runs/vitl_k400 --every 10
  python -m motionmae watch runs/demo --once

It reads the run's files and nothing else: use it over SSH, on any node that sees them.
Ctrl-C ends it, never the run."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a run in the terminal: losses, pace, phases, goodput, faults",
        description="Follow a run in the terminal until it has finished.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="how often to look (default: 2)")
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the run until it has finished or Ctrl-C; returns the exit status."""
    from rich.console import Console
    from rich.live import Live

    from monitoring.watch import view
    from motionmae.runs.history import RunHistory

    if not 0 < arguments.every <= threading.TIMEOUT_MAX:  # what sleep takes; false for nan too
        raise UserError(f"--every {arguments.every}: give a positive number of seconds, for example 2")
    console = Console()
    history = RunHistory(arguments.folder).require_events()
    if arguments.once:
        console.print(view(history, console.width))
        return 0
    try:
        with Live(
            view(history, console.width), console=console, auto_refresh=False, screen=console.is_terminal
        ) as live:
            while history.state != "finished":
                time.sleep(arguments.every)
                history = RunHistory(arguments.folder).require_events()
                live.update(view(history, console.width), refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(view(history, console.width))  # what stays after the screen is given back
    return 0
