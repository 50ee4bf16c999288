"""Tables, consoles and progress bars of rich that show every text as it is: no markup, control characters escaped."""

import sys
from typing import Any

from rich import console, table
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from motionmae.text import cell


class Table(table.Table):
    """Table of rich whose title, headings and cells are plain text. A cell may be any other renderable."""

    def __init__(self, *headers: table.Column | str, title: object = None, **options: Any) -> None:
        shown = None if title is None else cell(title, "table.title")
        super().__init__(*headers, title=shown, **options)

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        super().add_column(_plain(header), _plain(footer), **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


class TaskText(ProgressColumn):
    """Column of a progress bar: the description of its task, or the field ``name`` of it."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = name

    def render(self, task: Task) -> Text:
        return cell(task.fields[self._name] if self._name else task.description)


def make_console(**options: Any) -> console.Console:
    """Return a console that takes no markup from strings. It does not escape control characters of plain strings."""
    return console.Console(markup=False, emoji=False, highlight=False, **options)


def show(renderable: console.RenderableType, *, wrap: bool = True) -> None:
    """Print a table to standard output. Without ``wrap``, lines wider than the terminal stay whole for copying."""
    make_console(file=sys.stdout, soft_wrap=not wrap).print(_plain(renderable))


def draw_bar(length: int) -> str:
    """Return a bar of ``length`` characters that standard output can encode."""
    try:
        "█".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "#" * length
    return "█" * length


def progress_of(*, disable: bool = False, transient: bool = False) -> Progress:
    """Make a progress bar: description, bar, count, remaining time."""
    columns = (TaskText(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "left")
    return Progress(*columns, console=make_console(), disable=disable, transient=transient)


def _plain(content: Any) -> Any:
    return cell(content) if isinstance(content, str) else content
