"""Progress bars, JSON output and refusals that the tools share."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import progress

from motionmae.data.shards.errors import CorruptSample
from motionmae.errors import UserError
from motionmae.screen import TaskText, make_console


def progress_bar(*more: progress.ProgressColumn) -> progress.Progress:
    """Make a progress bar on stderr with the further columns ``more``. The bar is shown only on terminals."""
    console = make_console(stderr=True)
    count = (TaskText(), progress.BarColumn(), progress.MofNCompleteColumn())
    time = (progress.TimeElapsedColumn(), "so far,", progress.TimeRemainingColumn(), "left")
    return progress.Progress(*count, *more, *time, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def damage_as_user_error() -> Iterator[None]:
    """Convert a CorruptSample to a UserError that names the command to list all damage; see also :func:`name_file`."""
    try:
        with name_file():
            yield
    except CorruptSample as error:
        raise UserError(f"{error}; `motionmae shards verify` lists all damage") from error


@contextlib.contextmanager
def name_file() -> Iterator[None]:
    """Convert an OSError of a file that cannot be read or written to a UserError that names the file."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename
        if name is None:  # a closed pipe, a full disk: for others to handle
            raise
        remedy = "check its kind, its permissions and its disk"
        raise UserError(f"{name} cannot be read or written ({error.strerror}): {remedy}") from error


def refuse_inside(out: Path, inputs: Mapping[str, Path | None], option: str = "--out") -> None:
    """Raise UserError if ``out``, after links are resolved, is one of the input folders, or lies in one.

    ``option`` names ``out``, and the keys of ``inputs`` name the folders. What a tool writes would mix with the user's
    files, and the next run would take it for input.
    """
    target = out.resolve()
    for name, folder in inputs.items():
        if folder is not None and folder.is_dir() and target.is_relative_to(folder.resolve()):
            where = "is" if target == folder.resolve() else "lies in"
            raise UserError(
                f"{option} {out} {where} {name} {folder}, and would mix with its files: choose a folder beside it"
            )


def refuse_differences(out: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise UserError if the settings of a run differ from the settings with which ``out`` was started."""
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if changed:
        before, now = (", ".join(f"{name}={str(values.get(name))[:40]}" for name in changed) for values in (old, new))
        remedy = "use the earlier values, or choose another --out"
        raise UserError(f"--out {out} was started with {before}, and this run has {now}: {remedy}")
