"""`motionmae runs`: a table of all runs in a folder, from their files and, where Slurm is installed, its queue."""

import argparse
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.live import Live
from rich.text import Text

from monitoring.watch import STATE_STYLES
from motionmae.commands.app import Command
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.outputs import json_with, output_argument
from motionmae.runs.formatting import duration
from motionmae.runs.history import RunState
from motionmae.runs.summary import RunSummary, summarise_runs
from motionmae.screen import Table, make_console, show
from motionmae.text import cell, printable, say
from slurm.job_state import JobRecord
from slurm.scontrol import queued_jobs

_DESCRIPTION = """\
List all runs in a folder: state, step, loss, pace, remaining time, node and last fault. The command reads only the ends
of the runs' files and asks Slurm once for its queue. Active runs come first, then the newest.

states: queued, starting, training; silent (no sign for 15 minutes); finished; stopped (by its user); preempted (saved,
and waits to continue); requeued (failed, and waits to continue); failed"""
_EPILOG = """\
examples:
  motionmae runs
  motionmae runs /shared/runs --watch
  motionmae runs --state failed --json failed.json
  motionmae runs --json -"""
_WAITS = (RunState.QUEUED, RunState.REQUEUED, RunState.PREEMPTED)
_WORKS = (RunState.STARTING, RunState.TRAINING, RunState.SILENT)
_LONGEST_FAULT = 100  # characters
_to_file = output_argument(json_with("name", "state", "eta_seconds"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    parser.add_argument("--state", choices=[state.value for state in RunState], action="append", help="only these runs")
    parser.add_argument("--watch", action="store_true", help="refresh the table until Ctrl-C")
    every = "refresh interval of --watch (default: 10)"
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help=every)
    stored = "also write the table as JSON; - prints the JSON in place of the table"
    parser.add_argument(
        "--json", type=lambda text: text if text == "-" else _to_file(text), metavar="FILE", help=stored
    )


def run(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of your runs, which is output_dir of their configs")
    if not 0 < arguments.every <= threading.TIMEOUT_MAX:  # excludes NaN
        raise UserError(f"--every must be a positive number of seconds, such as 10, not {arguments.every}")
    if arguments.watch and arguments.json:
        raise UserError("--watch refreshes a table on the screen: leave out --json, or --watch")
    if arguments.watch:
        _watch(arguments)
        return 0
    found = runs_in(folder, arguments.state)
    if arguments.json:
        write_json(Path("/dev/stdout" if arguments.json == "-" else arguments.json), [asdict(run) for run in found])
    if arguments.json == "-":
        return 0
    if not found:
        kind = f"{' or '.join(arguments.state)} " if arguments.state else ""
        say(f"{folder} holds no {kind}run")
        return 0
    console = make_console(file=sys.stdout)
    console.print(table(found, console.width))
    _print_notes(found)
    return 0


def runs_in(folder: Path, states: Sequence[str] | None = None, now: float | None = None) -> list[RunSummary]:
    """Return the runs in ``folder`` that are in one of ``states``, with what Slurm knows about their jobs."""
    found = summarise_runs(folder, now)
    records = {run.folder: _record(run) for run in found if run.state in (*_WAITS, *_WORKS)}
    job_ids = [record.job_id for record in records.values() if record and record.cluster == "slurm"]
    jobs = queued_jobs(job_ids) if job_ids else None
    if jobs is not None:
        found = [_with_job(run, records.get(run.folder), jobs) for run in found]
    return [run for run in found if not states or run.state in states]


def _record(run: RunSummary) -> JobRecord | None:
    try:
        return JobRecord.read(Path(run.folder))
    except (UserError, OSError):  # damaged, or of another user
        return None


def _with_job(run: RunSummary, record: JobRecord | None, jobs: Mapping[str, str]) -> RunSummary:
    """Correct the state of a run whose job is in no queue any more: it was cancelled, or it was killed."""
    if record is None or record.cluster != "slurm":
        return run
    if reason := jobs.get(record.job_id):
        waits = run.state in _WAITS and not run.fault and reason not in ("None", "")
        return replace(run, job=record.job_id, note=f"waits: {reason}" if waits else run.note)
    if run.state in _WORKS:
        fault = f"job {record.job_id} has left Slurm's queue without a message of the run"
        return replace(run, state=RunState.FAILED, eta_seconds=None, fault=fault, fault_time=run.last_sign)
    return replace(run, state=RunState.STOPPED, note=f"job {record.job_id} has left Slurm's queue")


def _watch(arguments: argparse.Namespace) -> None:
    console = make_console()
    shown = None
    try:
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                found = runs_in(arguments.folder, arguments.state)
                shown = table(found, console.width)
                shown.caption = cell(f"{time.strftime('%H:%M:%S')}, every {arguments.every:g} s; Ctrl-C ends")
                live.update(shown, refresh=True)
                time.sleep(arguments.every)
    except KeyboardInterrupt:
        if shown and console.is_terminal:
            show(shown)  # remains after the alternate screen closes


def table(runs: Sequence[RunSummary], width: int, now: float | None = None) -> Table:
    """Draw the runs for a terminal of ``width`` characters. A narrow one shows fewer columns."""
    moment = time.time() if now is None else now
    wide, narrow = width >= 120, width < 80
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=width < 200)
    drawn.add_column("run", overflow="fold", min_width=8)
    drawn.add_column("state", no_wrap=True)
    for heading in ("step", *([] if narrow else ["loss", "left"]), *(["pace", "last sign"] if wide else [])):
        drawn.add_column(heading, justify="right", no_wrap=True)
    if wide:
        drawn.add_column("node", overflow="ellipsis", no_wrap=True, max_width=24)
    drawn.add_column("last fault", overflow="fold", ratio=1, min_width=10)
    for run in runs:
        state = cell(run.state.value, STATE_STYLES[run.state])
        figures = [] if narrow else [_loss(run), _left(run)]
        figures += [_pace(run), _sign(run, moment), _node(run)] if wide else []
        drawn.add_row(run.name, state, _step(run), *figures, _fault(run, moment))
    return drawn


def _step(run: RunSummary) -> str:
    if run.step is None or not run.total_steps:
        return "-" if run.step is None else f"{run.step:,}"
    return f"{run.step:,}/{run.total_steps:,} {min(run.step / run.total_steps, 1):4.0%}"


def _loss(run: RunSummary) -> str:
    return "-" if run.loss is None else f"{run.loss:.4g}"


def _pace(run: RunSummary) -> str:
    return "-" if run.step_seconds is None else f"{run.step_seconds:.3g} s/step"


def _left(run: RunSummary) -> str:
    return "-" if run.eta_seconds is None else duration(run.eta_seconds)


def _node(run: RunSummary) -> str:
    more = f" +{len(run.hosts) - 1}" if len(run.hosts) > 1 else ""
    return f"{run.hosts[0]}{more}" if run.hosts else "-"


def _sign(run: RunSummary, now: float) -> str:
    return "-" if run.last_sign is None else f"{duration(max(now - run.last_sign, 0))} ago"


def _fault(run: RunSummary, now: float) -> Text:
    text = printable(run.note or run.fault)
    text = text if len(text) <= _LONGEST_FAULT else f"{text[:_LONGEST_FAULT]}..."
    if not run.note and run.fault_time is not None:
        text = f"{text} ({duration(max(now - run.fault_time, 0))} ago)"
    return cell(text, "red" if run.state is RunState.FAILED else "")


def _print_notes(runs: Sequence[RunSummary]) -> None:
    failed = [run.folder for run in runs if run.state is RunState.FAILED]
    if failed:
        say(
            f"{len(failed)} failed: `motionmae report {failed[0]}` shows the faults, RUN/logs has the logs of all ranks"
        )


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)
