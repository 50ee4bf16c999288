"""Progress bars and JSON files of the tools."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from motionmae.files import write_atomically


def progress_bar(*more: ProgressColumn) -> Progress:
    """A progress bar on stderr with the columns ``more``; it is shown on terminals only."""
    console = Console(stderr=True)
    count = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    time = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*count, *more, *time, console=console, disable=not console.is_terminal)


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures of ``--json``."""
    write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())
