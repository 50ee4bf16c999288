"""Code blocks of README.md and docs/: how each is marked, and the commands in it.

A block that the tests cannot run has a comment above it, which the reader does not see: ``<!-- needs: a cluster -->``.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "a cluster",  # Slurm, or several machines
    "a GPU",
    "the file of another test",  # tested there: the comment names it, `the file of another test: tests/...`
}
_BLOCK = re.compile(
    r"(?:^[ ]*<!-- needs: (?P<needs>[^>]+?) -->\n)?^(?P<indent>[ ]*)```(?P<language>[^\n]*)\n(?P<text>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    needs: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command `motionmae ...` of a block of shell commands."""
        if self.language not in ("bash", "console"):
            return
        for line in shell_lines(self):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for is_operator, words in groupby(lexer, lambda word: not word.strip("();<>|&")):
                found = list(words)
                if not is_operator and found[0] == "motionmae":
                    yield found[1:]


def shell_lines(block: Block) -> list[str]:
    """Return the commands of a block; those of a console have a prompt, and its other lines are their output."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")] if block.language == "console" else lines


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page, text.count("\n", 0, found.start()) + 1, found["language"].strip(), found["needs"] or "", found["text"]
        )
        for found in _BLOCK.finditer(text)
    ]
