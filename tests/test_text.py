"""Text of others on screens, in logs and in pictures: nothing in it steers a terminal, and nothing goes around it."""

import ast
import io
import logging
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from motionmae.text import LINES, cell, excerpt, get_logger, join_lines, picture_text, printable, say

ROOT = Path(__file__).resolve().parents[1]
_SOURCES = [path for name in ("motionmae", "data_tools", "monitoring", "slurm") for path in (ROOT / name).rglob("*.py")]
_SCREENS = {ROOT / "motionmae" / "text.py", ROOT / "motionmae" / "screen.py"}
_REFUSED_IMPORTS = {
    ("rich", "print"), ("rich", "get_console"), ("rich.table", "Table"), ("rich.console", "Console"),
    ("rich.progress", "track"), ("rich.progress", "TextColumn"), ("rich", "markup"), ("rich.markup", "escape"),
    ("rich.markup", "render"),
}  # fmt: skip
_REFUSED_FUNCTIONS = {"print", "Text"}
_REFUSED_METHODS = {"print_exc", "print_exception", "from_markup", "getLogger"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 你 نمونه 👩‍🔬", "plain é 你 نمونه 👩‍🔬"),
        ("a\x1b[2J\x07", r"a\x1b[2J\x07"),
        ("\x9b31m \x7f", r"\x9b31m \x7f"),
        ("two\nlines\r\tand\u2028more\u2029", r"two\nlines\r\tand\u2028more\u2029"),
        ("txt\u202egpj", r"txt\u202egpj"),
        ("\u2066\u200f\ufeff\xad", r"\u2066\u200f\ufeff\xad"),
        ("no text: \udcff", r"no text: \udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_only_characters_that_do_not_print_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_no_control_character_is_left(text: str) -> None:
    left = {unicodedata.category(c) for c in printable(text) if c not in "\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_stream_takes_every_text(encoding: str) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding)
    say("é 你 \udcff \x1b", stream)
    assert content.getvalue().decode(encoding).endswith("\\udcff \\x1b\n")


def test_messages_of_other_programs_become_a_clause() -> None:
    assert (
        join_lines("sbatch: error: no partition\n\n  sbatch: again \n") == "sbatch: error: no partition; sbatch: again"
    )
    assert join_lines("") == ""


def test_log_lines_are_escaped_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        get_logger("motionmae.test").info("%s: %s", "a\x1b[2J", OSError("two\nlines"))
        assert get_logger("motionmae.test") is get_logger("motionmae.test")
    assert caplog.messages == [r"a\x1b[2J: two\nlines"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{", "costs $3 and $4", "$x$", r"\$x$", "你好", "\x1b[2J\n", "\udcff"])
def test_a_label_of_a_picture_is_drawn_as_it_is(name: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(picture_text(name))
    axes.set_xticks([0], [picture_text(name)])
    figure.savefig(io.BytesIO(), format="png")
    assert matplotlib.cbook.is_math_text(picture_text(name)) is False


def _refused(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, n.name) for n in node.names if (node.module, n.name) in _REFUSED_IMPORTS)
        if isinstance(node, ast.Call) and _is_refused(node):
            yield node.lineno, ast.unparse(node)


def _is_refused(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    name = called.rpartition(".")[2]
    if name == "print" and called != "print":  # of a console: a renderable that another function has made
        return not all(isinstance(argument, ast.Call) for argument in call.args)
    if called in {"sys.stdout.write", "sys.stderr.write"} or called in _REFUSED_FUNCTIONS:
        return True
    return name in _REFUSED_METHODS and ast.unparse(call) != "logging.getLogger('DeepSpeed')"


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_shown_only_by_functions_that_escape_it(path: Path) -> None:
    if path in _SCREENS:
        return
    found = [f"{path}:{line}: {what}" for line, what in _refused(ast.parse(path.read_text()))]
    assert found == [], "use motionmae.text and motionmae.screen"


@pytest.mark.parametrize(
    "code",
    [
        "print(x)",
        "traceback.print_exc()",
        "sys.stdout.write(x)",
        "Text(x)",
        "Text.from_markup(x)",
        "from rich.table import Table",
        "console.print(f'{x}')",
        "logging.getLogger(__name__)",
    ],
)
def test_the_rule_finds(code: str) -> None:
    assert list(_refused(ast.parse(code)))


def test_an_excerpt_is_cut_after_the_most_characters() -> None:
    assert excerpt("abcdef", most=6) == "abcdef"
    assert excerpt("abcdefg", most=6) == "abcdef..."
    assert excerpt("abcde", most=6) == "abcde"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/a?token=1 failed", "https://host/a?*** failed".replace("//", "//***@")),
        ("s3://key@bucket/a#part", "s3://***@bucket/a#***"),
        ("http://host/user@mail", "http://host/user@mail"),
        ("mail to me@host?", "mail to me@host?"),
        ("a://u@h b://v@i", "a://***@h b://***@i"),
    ],
)
def test_an_excerpt_shows_no_password_of_a_url(text: str, shown: str) -> None:
    assert excerpt(text) == shown


def test_an_excerpt_has_200_characters_after_the_escapes() -> None:
    assert excerpt("a" * 201) == "a" * 200 + "..."
    assert excerpt("a" * 200) == "a" * 200
    assert excerpt("\x1b" * 2, most=4) == "\\x1b..."


def test_lines_are_kept_only_where_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\n\tb\x1b", keep=LINES)
    say("a\n\tb", end="|")
    say()
    say("to\u200cgether", sys.stderr)
    assert capsys.readouterr() == ("a\n\tb\\x1b\na\\n\\tb|\n", "to\u200cgether\n")


def test_a_line_is_flushed_and_a_stream_may_have_no_encoding(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        say("at once", file)
        assert (tmp_path / "log").read_text() == "at once\n"
    stream = io.StringIO()
    assert stream.encoding is None
    say("é \udcff", stream)
    assert stream.getvalue() == "é \\udcff\n"


def test_characters_that_the_font_lacks_are_escaped() -> None:
    assert picture_text("é 你 a$") == r"é \u4f60 a\$"


def test_a_cell_is_plain_text_of_its_style() -> None:
    shown = cell("[red]\x1b", "bold")
    assert (shown.plain, shown.style, shown.spans) == ("[red]\\x1b", "bold", [])
    assert cell(3).style == ""


def test_a_log_message_that_does_not_fit_its_arguments_reaches_the_handler() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "%d steps", ("three",), None)
    assert all(
        one.filter(record) if isinstance(one, logging.Filter) else one(record)
        for one in get_logger("motionmae.y").filters
    )
    assert (record.msg, record.args) == ("%d steps", ("three",))
    get_logger("motionmae.y")
    assert len(get_logger("motionmae.y").filters) == 1
