"""Every command, in folders full of the user's own files with confusable names. None of these may change."""

import argparse
import os
import shutil
import stat
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from motionmae.commands import app
from motionmae.commands.table import COMMANDS
from motionmae.config import EngineConfig, FinetuneConfig, save_config
from motionmae.distributed.process_group import init_distributed
from motionmae.evaluation.davis.dataset import write_mask
from motionmae.evaluation.video_writer import write_mp4
from tests.data.made_shards import needs_ffcv
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run

NAMES = (
    "README.md~", "config.json.bak", "config.yaml.orig", "model.safetensors.tmp", "motionmae.json.old",
    "notes.jsonl", "events.jsonl.1", "metrics-mine.jsonl", "lease.json.old", "job.json.old", ".lease.lock.old",
    "encoder-mine.safetensors", "train-000000.tar.bak", "train-000000.idx.json.old", "merged-results.csv",
    "merged-000000.tar.old", "quarantine.jsonl.orig", "manifest.json.old", "plan.json.old", "cache_key.json.bak",
    "toy.json.old", "train.csv.old", "report.html.old", "reconstruction.png.old", "figures.json.tmp.mine",
    "predictions.csv.old", "0.json.bak", "demo-7.json.old", "tiny-0.json.old", "step-00000100-best-keep.zip",
    ".figures.json.mine.tmp", "stop.md", "save.txt",
)  # fmt: skip
"""Names that resemble those of the product's files, but are none of them."""


def sow(folder: Path) -> None:
    """Put foreign files of every kind into ``folder`` and all folders below it."""
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    for place in places:
        if (place / NAMES[0]).exists() or place.name in ("step-notes", "checkpoints"):
            continue
        for number, name in enumerate(NAMES):
            (place / name).write_text(f"the only copy of {name}")
            (place / name).chmod((0o600, 0o640, 0o444)[number % 3])
        (place / "step-notes").mkdir()
        (place / "step-notes" / "0.json").write_text("my notes")
        (place / "latest.link").symlink_to("step-notes")
        (place / "dangling.link").symlink_to("nowhere")


def contents(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Mode and bytes of every file, and the target of every link, by path below ``folder``."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in folder.rglob("*"):
        content: bytes | str | None = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = stat.S_IMODE(path.lstat().st_mode), content
    return found


def foreign(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """The part of :func:`contents` that :func:`sow` made."""
    ours = {*NAMES, "step-notes", "latest.link", "dangling.link"}
    return {name: found for name, found in contents(folder).items() if ours & set(Path(name).parts)}


def train(words: list[list[str]]) -> list[int]:
    """Run commands one after the other as one rank."""
    init_distributed(EngineConfig(device="cpu"))  # both runs use it
    statuses = [app.main(command) for command in words]
    assert not any(statuses), statuses  # shows the output
    return statuses


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of all commands. The runs trained in folders that held foreign files, and left these as they were."""
    folder = tmp_path_factory.mktemp("world")
    shards = make_shards(folder / "shards", shards=1, samples=6, classes=2)
    make_shards(folder / "more", shards=1, samples=4, classes=2)
    random = np.random.default_rng(0)
    for number in range(2):
        (folder / "videos").mkdir(exist_ok=True)
        pictures = random.integers(0, 255, (12, 48, 64, 3), np.uint8)
        write_mp4(folder / "videos" / f"{number}.mp4", iter(pictures), 10)
    _make_davis(folder / "davis", random)
    sections = {"optim": {"epochs": 4}, "checkpoint": {"every_steps": 1}, "monitoring": {"enabled": False}}
    pretrained = tiny_run(shards, folder / "runs", **sections)
    tuning = FinetuneConfig(init=str(folder / "runs/tiny"), mixup=0, cutmix=0)
    tuned = pretrained.updated({"name": "tuned", "task": "finetune", "finetune": tuning, "test.shards": str(shards)})
    for config in (pretrained, tuned):
        save_config(config, folder / f"{config.name}.yaml")
        (folder / "runs" / config.name / "checkpoints").mkdir(parents=True)
    sow(folder / "runs")
    before = foreign(folder)
    commands = [
        ["pretrain", "--config", str(folder / "tiny.yaml")],
        ["finetune", "--config", str(folder / "tuned.yaml")],
    ]
    assert run_ranks(1, train, commands) == [[0, 0]]
    assert foreign(folder) == before
    return folder


def _make_davis(folder: Path, random: np.random.Generator) -> None:
    from PIL import Image

    for frame in range(3):
        picture = folder / "JPEGImages/480p/bear" / f"{frame:05d}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)).save(picture)
        mask = np.zeros((40, 60), np.uint8)
        mask[10:20, 10 + frame : 30] = 1
        write_mask(folder / "Annotations/480p/bear" / f"{frame:05d}.png", mask)
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/val.txt").write_text("bear\n")


LINES = {
    "shards make": "folder --videos {world}/videos --workers 1 --out {out}/made --json {out}/figures.json",
    "shards submit": "--parts 2 -- folder --videos {world}/videos --out {out}/made",
    "shards verify": "{world}/shards",
    "shards stats": "{world}/shards --json {out}/figures.json --picture {out}/classes.png",
    "shards preview": "{world}/shards --out {out}/sheet.png",
    "shards merge": "{world}/shards {world}/more --out {out}/merged",
    "shards beton": "{world}/shards --out {out}/clips.beton",
    "shards toy": "--train 1 --val 1 --size 32 --workers 1 --out {out}/toy",
    "config list": "",
    "config show": "tiny_toy",
    "config diff": "tiny_toy tiny_toy",
    "config schema": "",
    "plan": "--config demo --videos 100 --json {out}/figures.json",
    "pretrain": "--config {world}/tiny.yaml output_dir={out}/runs",
    "finetune": "--config {world}/tuned.yaml output_dir={out}/runs",
    "test": "{out}/runs/tuned --clips 1 --crops 1 --json {out}/figures.json",
    "submit": "--config {world}/tiny.yaml output_dir={out}/submitted",
    "watch": "{out}/runs/tiny --once",
    "report": "{out}/runs/tiny --no-pictures --out {out}/report.html --json {out}/figures.json",
    "checkpoints": "{out}/runs/tiny --verify --json {out}/figures.json",
    "reconstruct": "{out}/runs/tiny --out {out}/picture.png",
    "export": "{out}/runs/tiny --out {out}/exported",
    "knn": "{out}/runs/tiny --train {world}/shards --test {world}/shards --k 1 --json {out}/figures.json",
    "features": "{out}/runs/tiny --videos {world}/videos --out {out}/features.npz",
    "davis": "--davis {world}/davis --features repeat --out {out}/masks --overlay png --json {out}/figures.json",
    "doctor data": "--config {world}/tiny.yaml --seconds 0.1 --json {out}/figures.json",
    "demo": "",
}
"""Arguments of every command, with all of its outputs."""

SBATCH = """#!/bin/sh
case "$*" in *--parsable*) echo 7;; *) echo Submitted batch job 7;; esac
"""
OUTPUTS = {"out", "json", "picture"}
INPUTS = {"videos", "annotations", "shards", "folder", "folders", "davis", "evaluate_only", "video", "site"}
"""Names of all arguments that are paths."""

REFUSED_AGAIN = {"shards merge", "submit"}
"""Commands that refuse to run again on their own results."""

each_command = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_ffcv if name == "shards beton" else ()) for name in LINES]
)


MINE = (b"my own text", b'{"name": "my own figures"}', b"\x89PNG\r\n\x1a\nmy own picture", b"PKmy own archive")


def actions(name: str) -> list[argparse.Action]:
    """The arguments of a command that name files or folders."""
    parser = app.load_command(name).fill(argparse.ArgumentParser())
    return [action for action in parser._actions if action.type not in (None, int, float, str)]


def options(name: str) -> dict[str, str]:
    """The options in LINES that name output files, with the name of each file."""
    words = LINES[name].split()
    found = dict(pairwise(words))
    return {f"--{key}": found[f"--{key}"] for key in sorted(OUTPUTS) if "." in found.get(f"--{key}", "")}


def run(name: str, world: Path, out: Path, *more: str) -> int:
    """Run the command line of LINES and return its exit status."""
    words = [*name.split(), *LINES[name].format(world=world, out=out).split(), *more]
    if name in ("pretrain", "finetune"):
        return int(run_ranks(1, train, [words])[0][0])
    try:
        return app.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def out(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with copies of the runs, and a stub of sbatch."""
    place = tmp_path / "out"
    shutil.copytree(world / "runs", place / "runs", symlinks=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(place)
    return place


def test_every_command_and_every_path_argument_is_covered():
    assert LINES.keys() == COMMANDS.keys()
    for name in COMMANDS:
        for action in actions(name):
            is_path = action.type is Path or "output_" in getattr(action.type, "__qualname__", "")
            assert not is_path or action.dest in OUTPUTS | INPUTS, f"{name}: is {action.dest} an output?"
            assert action.dest not in OUTPUTS or f"--{action.dest}" in LINES[name].split(), (name, action.dest)


@each_command
def test_foreign_files_beside_the_results_stay(name: str, world: Path, out: Path):
    if name == "demo":
        (out / "data/demo/videos").mkdir(parents=True)
    sow(out)
    before, inputs = foreign(out), contents(world)
    assert run(name, world, out) == (1 if name == "demo" else 0)
    assert foreign(out) == before
    sow(out)  # also beside the results
    before = foreign(out)
    status = run(name, world, out)
    assert status == 0 or name in REFUSED_AGAIN | {"demo"}
    assert foreign(out) == before
    assert contents(world) == inputs


@pytest.mark.parametrize(
    ("name", "option"),
    [
        pytest.param(name, option, marks=needs_ffcv if name == "shards beton" else ())
        for name in LINES
        for option in options(name)
    ],
)
def test_a_named_file_of_another_origin_is_not_replaced(name: str, option: str, world: Path, out: Path):
    path = Path(options(name)[option].format(out=out))
    for content in MINE:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        before = contents(out)
        assert run(name, world, out) == 2
        assert contents(out) == before
        path.rename(out / "mine")
        path.symlink_to(out / "mine")
        before = contents(out)
        assert run(name, world, out) == 2
        assert contents(out) == before
