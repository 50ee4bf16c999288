"""`motionmae checkpoints`: list, verify and repair the checkpoints of a run."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motionmae.commands.app import Command, add_json_argument
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.runs.checkpoint_inspect import InspectedCheckpoint

_DESCRIPTION = """\
List the checkpoints of a run, newest first, and mark the one on disk that a resume would load. Without --verify only
file sizes are compared with the manifest. On a node of the run, its memory copies are listed too: a resume on these
nodes takes the newest complete one instead if it is as new as the disk."""
_EPILOG = """\
examples:
  motionmae checkpoints runs/vitb_ssv2
  motionmae checkpoints runs/vitb_ssv2 --verify
  motionmae checkpoints runs/vitb_ssv2 --repair

exit status: 0 all checkpoints are valid or were repaired, 1 a checkpoint is damaged or unreadable, 2 an error"""


_WRITER = (("ZeRO", "zero_stage"), ("attempt", "attempt"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--verify", action="store_true", help="read every byte and compare checksums")
    repaired = "verify, then delete damaged checkpoints and leftovers of writes, unless a rank may be writing"
    parser.add_argument("--repair", action="store_true", help=repaired)
    parser.add_argument("--force", action="store_true", help="repair even if a rank may be writing")
    add_json_argument(parser, "name", "status", "writer", content="table")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.runs.checkpoint_inspect import inspect, inspect_memory, repair
    from motionmae.runs.checkpoint_store import CheckpointStore
    from motionmae.runs.directory import RunFolder
    from motionmae.runs.lease import current_holder

    folder = RunFolder(arguments.folder)
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} is not a run folder because it has no checkpoints/: give the folder of a run")
    owner = current_holder(folder.path)
    if arguments.repair and owner and not arguments.force:
        raise UserError(f"{owner}, and a repair could delete its files: stop the run, or add --force if it is dead")
    inspected = inspect(CheckpointStore(folder.checkpoints), arguments.verify or arguments.repair, _progress)
    copies = inspect_memory(folder.path, arguments.verify)
    if inspected or copies:
        _show([*copies, *inspected], len(copies))
    if not inspected:
        say(f"{folder.path} has no checkpoints yet")
    if arguments.json:
        write_json(arguments.json, [_figures(checkpoint) for checkpoint in [*copies, *inspected]])
    if arguments.repair:
        links = {found.folder: found.link for found in inspected if found.link}
        deleted = [_deletion(path, links.get(path, "")) for path in repair(inspected)]
        say(f"deleted {', '.join(deleted)}" if deleted else "nothing to repair")
        return 0
    damaged, unreadable = ([f for f in inspected if f.status.value == kind] for kind in ("damaged", "unreadable"))
    if damaged:
        say(f"{len(damaged)} damaged: delete them with `motionmae checkpoints {folder.path} --repair`")
    if unreadable:
        say(f"{len(unreadable)} cannot be read but may be valid: repair the storage before a resume")
    return 1 if damaged or unreadable else 0


def _deletion(path: Path, link: str) -> str:
    return f"the link {path.name} (not its target {link})" if link else path.name


def _progress(found: list[Any]) -> Iterator[Any]:
    from motionmae.screen import progress_of

    with progress_of(transient=True) as bar:
        yield from bar.track(found, description="reading checkpoints")


def _figures(checkpoint: "InspectedCheckpoint") -> dict[str, Any]:
    values = asdict(checkpoint)
    return {"name": values.pop("folder").name, **values}


def _show(inspected: "list[InspectedCheckpoint]", copies: int) -> None:
    """Print a table of the memory copies on this node, which come first, and of the checkpoints."""
    from motionmae.runs.formatting import duration
    from motionmae.screen import Table, show
    from motionmae.text import cell

    table = Table()
    for heading in ("checkpoint", "step", "size", "age", "written by", "status"):
        table.add_column(heading, justify="right" if heading in ("step", "size", "age") else "left")
    for number, checkpoint in enumerate(inspected):
        writer = checkpoint.writer
        status = cell(checkpoint.status.value + (f": {checkpoint.reason}" if checkpoint.reason else ""))
        if checkpoint.resumes:
            status.append(" <- a resume loads this one", "bold")
        if checkpoint.best:
            status.append(cell(f" <- the best by validation ({checkpoint.best}), --step best", "bold"))
        table.add_row(
            "in memory" if number < copies else checkpoint.folder.name,
            str(checkpoint.step),
            f"{checkpoint.bytes / 1e6:.1f} MB",
            duration(time.time() - checkpoint.modified),
            _writer_of(writer),
            status,
        )
    show(table)


def _writer_of(writer: dict[str, Any]) -> str:
    stage, attempt = (f", {title} {writer[key]}" if key in writer else "" for title, key in _WRITER)
    return f"{writer.get('world', '?')} ranks{stage or attempt}" if writer else ""


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)
