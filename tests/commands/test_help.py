"""The help of every command: quick, without side effects, and with examples that parse."""

import re
import shlex
import subprocess
import sys

import pytest

from motionmae.commands import app
from motionmae.commands.table import COMMANDS, GUIDE
from tests.monitoring.runs import ROOT


def examples(text: str) -> list[list[str]]:
    """Arguments of each command line of `motionmae` in a help text."""
    lines = text.replace("\\\n", " ").splitlines()
    found = (re.match(r"^ +(?:\d\. \S+ +)?(?:(?:torchrun|srun) .*-m )?motionmae (.*)$", line) for line in lines)
    return [shlex.split(re.split(r"   | > ", match[1])[0], comments=True) for match in found if match]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_that_parse(name: str) -> None:
    command = app.load_command(name)
    assert command.description
    if name == "demo":
        return
    shown = examples(command.epilog)
    assert any(words[: len(name.split())] == name.split() for words in shown)
    for words in shown:
        app.parse(words)


def test_the_guide_shows_the_steps_in_order_and_parses() -> None:
    shown = examples(GUIDE)
    assert [words[:2] for words in shown[:3]] == [["shards", "toy"], ["shards", "make"], ["shards", "make"]]
    assert [words[0] for words in shown[3:6]] == ["pretrain", "finetune", "test"]
    for words in shown:
        app.parse(words)


def test_the_help_of_all_commands_imports_neither_torch_nor_deepspeed() -> None:
    script = (
        "import sys; from motionmae.commands import app, table\n"
        "for name in table.COMMANDS: app.load_command(name)\n"
        "app.build_parser([word for name in table.COMMANDS for word in name.split()]).format_help()\n"
        "sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("option", ["--help", "--version", None])
def test_what_needs_no_command_imports_only_the_standard_library(option: str | None) -> None:
    words = [option] if option else []
    script = (
        f"import sys\nfrom motionmae.__main__ import main\nbefore = set(sys.modules)\ntry: main({words})\n"
        "except SystemExit: pass\n"
        "roots = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(', '.join(sorted(roots - set(sys.stdlib_module_names) - {'motionmae'})) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["motionmae", "demo"],
        *(["-m", f"monitoring.{name}"] for name in ("exporter", "metric_definitions")),
    ],
    ids=lambda words: words[-1],
)
def test_to_ask_for_help_does_nothing_else(words: list[str]) -> None:
    pages = list((ROOT / "monitoring/grafana").glob("*.json"))
    before = [page.stat().st_mtime_ns for page in pages]
    asked = subprocess.Popen(
        [sys.executable, *words, "--help"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        printed, _ = asked.communicate(timeout=300)
    finally:
        asked.kill()
    assert asked.returncode == 0
    program = "python -m " + words[-1] if words[0] == "-m" else " ".join(words)
    assert printed.startswith(f"usage: {program} [-h]\n")
    assert [page.stat().st_mtime_ns for page in pages] == before
