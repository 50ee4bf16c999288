"""Untrusted text (names, paths, errors, messages of other programs) for terminals, logs and pictures.

Such a text may hold escape sequences of a terminal, characters that reorder a line, line breaks that forge a line, or
bytes that are not text. ``say``, ``get_logger`` and :mod:`motionmae.screen` escape all text. A test refuses ``print``
and ``logging.getLogger`` elsewhere.
"""

import logging
import re
import sys
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.text import Text

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format (such as bidirectional overrides), surrogate, line and paragraph separator."""
LINES = "\n\t"
"""Characters to keep in a text of several lines."""
_JOINERS = "\u200c\u200d"  # format characters that Persian, Hindi and emoji need
_UNUSUAL = re.compile(r"[^ -~]")  # most logs have few of these
URL_USER = re.compile(r"(\w://)[^/?#\s]*@")
URL_QUERY = re.compile(r"(\w://[^?#\s]*[?#])\S+")
"""Parts of a URL that may hold a password or a token, after what may be shown."""


def printable(text: object, keep: str = "") -> str:
    r"""Escape the characters of ``text`` that do not print, like ``\x1b`` and ``\u202e``, but not those in ``keep``."""
    kept = _JOINERS + keep

    def shown(found: re.Match[str]) -> str:
        character = found[0]
        escape = unicodedata.category(character) in _ESCAPED and character not in kept
        return _escaped(character) if escape else character

    return _UNUSUAL.sub(shown, str(text))


def excerpt(text: object, most: int = 200) -> str:
    """Return ``printable(text)`` for a message: URLs without user and query, cut to ``most`` characters."""
    escaped = URL_QUERY.sub(r"\1***", URL_USER.sub(r"\1***@", printable(text)))
    return escaped if len(escaped) <= most else f"{escaped[:most]}..."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def cell(text: object, style: str = "") -> "Text":
    """Return ``text`` as rich text without markup, for tables, panels and progress bars."""
    from rich.text import Text  # most commands print no table

    return Text(printable(text), style)


def picture_text(text: object) -> str:
    """Return ``text`` as a label of matplotlib: no formulas (`$x$`), and characters that its font lacks escaped."""
    from matplotlib.font_manager import FontProperties, findfont, get_font  # slow to import

    glyphs = get_font(findfont(FontProperties())).get_charmap()
    known = (c if ord(c) in glyphs else _escaped(c) for c in printable(text))
    return "".join(known).replace("$", r"\$")


def say(text: object = "", file: TextIO | None = None, *, keep: str = "", end: str = "\n") -> None:
    """Print ``text`` at once, in one line. A text of several lines has ``keep=LINES``."""
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = printable(text, keep).encode(encoding, "backslashreplace").decode(encoding)
    print(shown, end=end, file=stream, flush=True)


def join_lines(text: object) -> str:
    """Join the lines of another program's message by ``; ``, for a message of one sentence."""
    return "; ".join(filter(None, map(str.strip, str(text).splitlines())))


def get_logger(name: str) -> logging.Logger:
    """Return the logger ``name``, which escapes its messages for every handler."""
    logger = logging.getLogger(name)
    if _escape not in logger.filters:
        logger.addFilter(_escape)
    return logger


def _escape(record: logging.LogRecord) -> bool:
    with suppress(TypeError, ValueError, KeyError):  # arguments that do not fit the message: the handler reports them
        record.msg, record.args = printable(record.getMessage()), ()
    return True
