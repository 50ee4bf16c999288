"""The generated pages of docs/reference say what the program says."""

import importlib.util

from tests.docs.code_blocks import ROOT

FOLDER = ROOT / "docs" / "reference"


def test_the_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [name for name, content in generate.pages().items() if (FOLDER / name).read_text() != content]
    assert stale == [], "run: python docs/reference/generate.py"


def test_the_pages_name_commands_and_keys() -> None:
    commands, keys = ((FOLDER / name).read_text() for name in ("commands.md", "config.md"))
    assert "## motionmae plan\n" in commands
    assert "`--dry-run`" in commands
    assert "| `optim.global_batch_size` |" in keys
