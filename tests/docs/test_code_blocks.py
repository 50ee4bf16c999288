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
QUICK = {
    "shards toy": ("--train", "42", "--val", "14"),
    "pretrain": _ONE_EPOCH,
    "finetune": _ONE_EPOCH,
    "submit": ("--dry-run", "optim.global_batch_size=32", "engine.micro_batch_size=1"),  # toy has 42 videos
}
"""Further arguments with which the commands of a page take seconds, and need no Slurm."""
SMALL = {
    "vitb_k400": ("tiny_toy", "model.pos_embed=sinusoidal"),  # which `export --format hf` needs
    "finetune_vitb_k400": ("finetune_tiny_videomae", "finetune.init=runs/vitb_k400"),
}
"""Small configs in place of those that need a GPU. Their runs keep the names."""
LINKS = {
    "data/k400": "toy", "SHARDS": "data/toy/val", "VIDEOS": "videos", "runs/NAME": "tiny_toy", "runs/A": "tiny_toy",
    "runs/B": "vitb_k400",
}  # fmt: skip
"""Names that stand for a reader's own files, and what a test puts there."""


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_has_a_language_and_a_known_need(block: Block) -> None:
    assert block.language in LANGUAGES
    need, _, test = block.needs.partition(": ")
    assert not need or need in NEEDS
    assert (need == "the file of another test") == bool(test)
    assert (ROOT / test).exists()


@pytest.mark.parametrize("block", [block for block in BLOCKS if list(block.commands())], ids=lambda block: block.place)
def test_commands_parse_and_name_configs_that_exist(block: Block) -> None:
    for words in block.commands():
        _, arguments = app.parse(words)
        config, overrides = getattr(arguments, "config", None), getattr(arguments, "overrides", [])
        if config is not None and not config.endswith(".yaml"):  # a file of the reader's own
            load_config(config, overrides)


@pytest.mark.long
@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if "python -m benchmarks" in b.text and b.needs], ids=lambda b: b.place
)
def test_benchmarks_exist_with_their_options(block: Block) -> None:
    """A block that takes hours is at least no fiction: `--help` of its modules has the options."""
    lines = [shlex.split(line, comments=True) for line in shell_lines(block) if line.startswith("python -m")]
    for _, _, module, *words in lines:
        command = [sys.executable, "-m", module, "--help"]
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        own = words[: words.index("--")] if "--" in words else words  # the others belong to `motionmae submit`
        assert [word for word in own if word.startswith("--") and word not in described] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml" and not b.needs], ids=lambda b: b.place)
def test_a_block_of_yaml_is_a_config_or_a_site_file(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    keys = set(yaml.safe_load(block.text))
    load_site(file) if keys <= {"launch", "sbatch", "environment"} else load_config(str(file))


def _runs(page: Path) -> list[Block]:
    return [b for b in blocks_of(page) if b.language in ("bash", "console", "python") and not b.needs]


def _run(page: Path, folder: Path) -> None:
    """Run the blocks of a page one after the other in ``folder``."""
    for block in _runs(page):
        _run_block(block, folder)


def _run_block(block: Block, folder: Path) -> None:
    """Run a block in ``folder``, with the commands `motionmae`, `torchrun` and `python` of this environment."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    shell = ["bash", "-euo", "pipefail", "-c", "\n".join(map(_quick, shell_lines(block)))]
    command = [sys.executable, "-c", block.text] if block.language == "python" else shell
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{block.place}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which a reader has followed README.md, with some videos of his own, and small runs of large names."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    modules = {"motionmae": "-m motionmae", "torchrun": "-m torch.distributed.run", "python": ""}
    for name, module in modules.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    _run(ROOT / "README.md", folder)
    (folder / "videos").mkdir()
    videos = sorted((folder / "data/toy_videos/val").rglob("*.mp4"))
    names = ("clip.mp4", "match.mp4", "cat.mp4", "videos/a.mp4", "videos/b.mp4")
    for name, video in zip(names, videos, strict=False):
        shutil.copy(video, folder / name)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    _run_block(Block(ROOT / "README.md", 0, "bash", "", LARGE_RUNS), folder)
    return folder


LARGE_RUNS = """\
motionmae pretrain --config vitb_k400
motionmae finetune --config finetune_vitb_k400
"""


@pytest.mark.long
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if _runs(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, home: Path) -> None:
    _run(page, home)


def _quick(line: str) -> str:
    """Return a line that takes seconds: few and small steps, two processes, and no submission."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["torchrun", "--nproc-per-node"]:
        return shlex.join([*words[:2], "2", *words[3:]])
    for command, further in QUICK.items():
        if words[:1] == ["motionmae"] and " ".join(words[1:]).startswith(command):
            return shlex.join([*_small(words), *further])
    return line


def _small(words: list[str]) -> list[str]:
    """Return a command that trains with its small config, under the name that its own config would give the run."""
    words = [word for word in words if word != "--follow"]
    if words[1] not in ("pretrain", "finetune"):
        return words
    position = words.index("--config") + 1
    name, small = words[position], SMALL.get(words[position])
    return [*words[:position], *small, f"name={name}", *words[position + 1 :]] if small else words


def test_an_unknown_option_in_a_page_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made_up.md"
    block = Block(page, 1, "bash", "", "motionmae plan --config vitl_k400 --nodez 4\n")
    with pytest.raises(SystemExit):
        test_commands_parse_and_name_configs_that_exist(block)
    with pytest.raises(UserError, match="vitx"):
        test_commands_parse_and_name_configs_that_exist(Block(page, 1, "bash", "", "motionmae plan --config vitx\n"))
