"""`motionmae watch`: follow a run in the terminal."""

import argparse
import threading
import time
from pathlib import Path

from motionmae.commands.app import Command
from motionmae.errors import UserError

_EPILOG = """\
examples:
  motionmae watch runs/demo
  motionmae watch runs/vitl_k400 --every 10
  motionmae watch runs/demo --once

The command only reads the run's files, and works on any node that sees them.
Ctrl-C ends the command but not the run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="refresh interval (default: 2)")
    parser.add_argument("--once", action="store_true", help="print the state once and exit")


def run(arguments: argparse.Namespace) -> int:
    """Show the run until it has finished, or until Ctrl-C."""
    from rich.live import Live

    from monitoring.watch import view
    from motionmae.runs.history import RunHistory
    from motionmae.screen import make_console

    if not 0 < arguments.every <= threading.TIMEOUT_MAX:  # the range of sleep(); excludes NaN
        raise UserError(f"--every must be a positive number of seconds, such as 2, not {arguments.every}")
    console = make_console()
    history = RunHistory(arguments.folder).require_events()
    if arguments.once:
        console.print(view(history, console.width))
        return 0
    try:
        shown = view(history, console.width)
        with Live(shown, console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while history.state != "finished":
                time.sleep(arguments.every)
                history = RunHistory(arguments.folder).require_events()
                live.update(view(history, console.width), refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(view(history, console.width))  # remains in the terminal after the alternate screen closes
    return 0


COMMAND = Command(add_arguments, run, description="Follow a run in the terminal until it has finished.", epilog=_EPILOG)
