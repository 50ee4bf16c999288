"""Every code block of README.md and docs/ runs as printed, or says what it needs; all commands parse."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from motionmae.commands import app
from motionmae.config import load_config
from motionmae.config.site import load_site
from motionmae.errors import UserError
from tests.docs.code_blocks import NEEDS, PAGES, ROOT, Block, blocks_of, shell_lines

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LANGUAGES = {"bash", "console", "python", "yaml", "text", "bibtex"}
_ONE_EPOCH = ("optim.epochs=1", "optim.warmup_epochs=0.5")
QUICK = {"shards toy": ("--train", "42", "--val", "14"), "pretrain": _ONE_EPOCH, "finetune": _ONE_EPOCH}
"""Further arguments with which the commands of a page take seconds."""


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_has_a_language_and_a_known_need(block: Block) -> None:
    assert block.language in LANGUAGES
    assert not block.needs or block.needs.partition(":")[0] in NEEDS


@pytest.mark.parametrize("block", [block for block in BLOCKS if list(block.commands())], ids=lambda block: block.place)
def test_commands_parse_and_name_configs_that_exist(block: Block) -> None:
    for words in block.commands():
        _, arguments = app.parse(words)
        config, overrides = getattr(arguments, "config", None), getattr(arguments, "overrides", [])
        if config is not None and not config.endswith(".yaml"):  # a file of the reader's own
            load_config(config, overrides)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml" and not b.needs], ids=lambda b: b.place)
def test_a_block_of_yaml_is_a_config_or_a_site_file(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    keys = set(yaml.safe_load(block.text))
    load_site(file) if keys <= {"launch", "sbatch", "environment"} else load_config(str(file))


def _runs(page: Path) -> list[Block]:
    return [b for b in blocks_of(page) if b.language in ("bash", "console", "python") and not b.needs]


def _run(page: Path, folder: Path) -> None:
    """Run the blocks of a page one after the other in ``folder``, with `motionmae` and `python` of this environment."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    for block in _runs(page):
        shell = ["bash", "-euo", "pipefail", "-c", "\n".join(map(_quick, shell_lines(block)))]
        command = [sys.executable, "-c", block.text] if block.language == "python" else shell
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{block.place}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which a reader has followed README.md, with some videos of his own."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    for name, module in (("motionmae", "-m motionmae"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    _run(ROOT / "README.md", folder)
    (folder / "videos").mkdir()
    videos = sorted((folder / "data/toy_videos/val").rglob("*.mp4"))
    for name, video in zip(("clip.mp4", "match.mp4", "videos/a.mp4", "videos/b.mp4"), videos, strict=False):
        shutil.copy(video, folder / name)
    return folder


@pytest.mark.long
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if _runs(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, home: Path) -> None:
    _run(page, home)


def _quick(line: str) -> str:
    """Return a line of which a training takes seconds."""
    words = shlex.split(line, comments=True)
    for command, further in QUICK.items():
        if words[:1] == ["motionmae"] and " ".join(words[1:]).startswith(command):
            return shlex.join([*words, *further])
    return line


def test_an_unknown_option_in_a_page_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made_up.md"
    block = Block(page, 1, "bash", "", "motionmae plan --config vitl_k400 --nodez 4\n")
    with pytest.raises(SystemExit):
        test_commands_parse_and_name_configs_that_exist(block)
    with pytest.raises(UserError, match="vitx"):
        test_commands_parse_and_name_configs_that_exist(Block(page, 1, "bash", "", "motionmae plan --config vitx\n"))
