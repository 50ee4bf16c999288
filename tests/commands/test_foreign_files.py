"""Every command, in folders full of the user's own files with confusable names. None of these may change."""

import argparse
import os
import shutil
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from motionmae.commands import app
from motionmae.commands.table import COMMANDS
from motionmae.config import EngineConfig, FinetuneConfig, save_config
from motionmae.distributed.process_group import init_distributed
from motionmae.evaluation import export_folder
from motionmae.evaluation.davis.dataset import write_mask
from motionmae.evaluation.export_folder import write_export
from motionmae.evaluation.video_writer import write_mp4
from motionmae.files import write_atomically
from tests.data.made_shards import needs_ffcv
from tests.foreign_files import MINE, contents, sow, sown
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run


def train(words: list[list[str]]) -> list[int]:
    """Run commands one after the other as one rank."""
    init_distributed(EngineConfig(device="cpu"))  # both runs use it
    return [app.main(command) for command in words]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of all commands. The runs trained in folders that held foreign files, and left these as they were."""
    folder = tmp_path_factory.mktemp("world")
    shards = make_shards(folder / "shards", shards=1, samples=6, classes=2)
    make_shards(folder / "more", shards=1, samples=4, classes=2)
    random = np.random.default_rng(0)
    for number in range(3):
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
    before = sown(folder)
    commands = [
        ["pretrain", "--config", str(folder / "tiny.yaml")],
        ["finetune", "--config", str(folder / "tuned.yaml")],
    ]
    assert run_ranks(1, train, commands) == [[0, 0]]
    assert sown(folder) == before
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
    "shards motion-labels": "{world}/shards --task arrow --out {out}/arrow",
    "shards beton": "{world}/shards --out {out}/clips.beton",
    "shards toy": "--train 1 --val 1 --size 32 --workers 1 --out {out}/toy",
    "init": "{world}/videos --name own --data {out}/own",
    "config list": "",
    "config show": "tiny_toy",
    "config diff": "tiny_toy tiny_toy",
    "config schema": "",
    "plan": "--config demo --videos 100 --json {out}/figures.json",
    "pretrain": "--config {world}/tiny.yaml output_dir={out}/runs",
    "finetune": "--config {world}/tuned.yaml output_dir={out}/runs",
    "test": "{out}/runs/tuned --clips 1 --crops 1 --json {out}/figures.json",
    "predict": "{out}/runs/tuned {world}/videos/0.mp4 --timeline --picture {out}/line.png "
    "--json {out}/figures.json --csv {out}/scores.csv",
    "submit": "--config {world}/tiny.yaml --ntasks-per-node 1 --gpus-per-node 0 output_dir={out}/submitted",
    "runs": "{out}/runs --json {out}/figures.json",
    "watch": "{out}/runs/tiny --once",
    "report": "{out}/runs/tiny --no-pictures --out {out}/report.html --json {out}/figures.json",
    "checkpoints": "{out}/runs/tiny --repair --json {out}/figures.json",
    "reconstruct": "{out}/runs/tiny --out {out}/picture.png",
    "export": "{out}/runs/tiny --out {out}/exported",
    "knn": "{out}/runs/tiny --train {world}/shards --test {world}/shards --k 1 --json {out}/figures.json",
    "features": "{out}/runs/tiny --videos {world}/videos --out {out}/features.npz",
    "davis": "--davis {world}/davis --features repeat --out {out}/masks --overlay png --json {out}/figures.json",
    "doctor data": "--config {world}/tiny.yaml --seconds 0.1 --json {out}/figures.json",
    "doctor gpu": "--device cpu --quick --only environment --json {out}/figures.json",
    "demo": "",
}
"""Arguments of every command, with all of its outputs."""

SBATCH = """#!/bin/sh
case "$*" in *--parsable*) echo 7;; *) echo Submitted batch job 7;; esac
"""
OUTPUTS = {"out", "json", "picture", "csv"}
INPUTS = {"videos", "annotations", "shards", "folder", "folders", "davis", "evaluate_only", "video", "site", "history",
          "classes", "data"}  # fmt: skip
"""Names of all arguments that are paths."""

REFUSED_AGAIN = {"shards merge", "shards motion-labels", "submit", "init"}
"""Commands that refuse to run again on their own results."""

each_command = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_ffcv if name == "shards beton" else ()) for name in LINES]
)


def actions(name: str) -> list[argparse.Action]:
    """The arguments of a command that name files or folders."""
    parser = app.load_command(name).fill(argparse.ArgumentParser())
    return [action for action in parser._actions if action.type not in (None, int, float, str)]


def options(name: str) -> dict[str, str]:
    """The options in LINES that name output files, with the name of each file."""
    words = LINES[name].split()
    found = dict(pairwise(words))
    return {f"--{key}": found[f"--{key}"] for key in sorted(OUTPUTS) if "." in found.get(f"--{key}", "")}


def run(name: str, world: Path, out: Path, line: str = "") -> int:
    """Run a command with the arguments ``line``, by default those of LINES, and return its exit status."""
    words = [*name.split(), *(line or LINES[name]).format(world=world, out=out).split()]
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
    before, inputs = sown(out), contents(world)
    assert run(name, world, out) == (1 if name == "demo" else 0)
    assert sown(out) == before
    sow(out)  # also beside the results
    before = sown(out)
    status = run(name, world, out)
    assert status == 0 or name in REFUSED_AGAIN | {"demo"}
    assert sown(out) == before
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


TRAPS = {
    "export": [f"exported/{name}" for name in sorted(export_folder.NAMES)],
    "report": ["runs/tiny/report.html"],
    "reconstruct": ["runs/tiny/reconstruction.png"],
    "shards preview": ["preview.png"],
    "shards toy": ["toy/toy.json", "toy/train/zoom_in/00000.mp4", "toy/classInd.txt", "toy/train.csv"],
    "shards make": [
        "made/all-000000.tar",
        "made/manifest.json",
        "made/quarantine.jsonl",
        "made/.make_shards/plan.json",
    ],
    "shards merge": ["merged/merged-results.csv", "merged/manifest.json", "merged/quarantine.jsonl"],
    "shards motion-labels": ["arrow/arrow-000000.tar", "arrow/manifest.json"],
    "davis": ["masks/bear.png", "masks/bear/00000.png", "masks/cache_key.json"],
    "features": ["features.npz.parts/notes.txt", "features.npz.parts/cache_key.json"],
    "submit": ["submitted/tiny/config.yaml", "submitted/tiny/job.json", "submitted/tiny/events.jsonl"],
    "pretrain": ["new/tiny/config.yaml", "new/tiny/metrics.jsonl", "new/tiny/events.jsonl", "new/tiny/lease.json"],
    "finetune": ["new/tuned/config.yaml", "new/tuned/encoder.safetensors", "new/tuned/attempts.jsonl"],
}
"""Files whose names a command chooses, in folders that it must not take for its own."""

WITHOUT = {
    "report": "--out {out}/report.html",
    "reconstruct": "--out {out}/picture.png",
    "shards preview": "--out {out}/sheet.png",
}
"""Arguments to leave out, because TRAPS has the default output."""


@pytest.mark.parametrize(("name", "trap"), [(name, trap) for name, traps in TRAPS.items() for trap in traps])
@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_a_foreign_file_of_the_same_name_is_not_replaced(name: str, trap: str, link: bool, world: Path, out: Path):
    (out / "mine").write_bytes(MINE[1])
    (out / trap).parent.mkdir(parents=True, exist_ok=True)
    if link:
        (out / trap).symlink_to(out / "mine")
    else:
        (out / "mine").rename(out / trap)
    line = LINES[name].replace(WITHOUT.get(name, ""), "").replace("output_dir={out}/runs", "output_dir={out}/new")
    before = contents(out)
    assert run(name, world, out, line=line) == 2
    assert contents(out).items() >= before.items()


def test_an_export_replaces_only_its_own_unchanged_files(world: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    words = ["export", str(out / "runs/tiny"), "--out", str(out / "x"), "--format"]
    assert app.main([*words, "hf"]) == app.main([*words, "hf"]) == 0
    for kind, name, message in (
        ("safetensors", "", "an export in another format, with config.json"),
        ("hf", "README.md", "a README.md that no export wrote, or that was changed"),
        ("hf", "config.json", "a config.json that no export wrote, or that was changed"),
        ("hf", "model.safetensors", "a model.safetensors that no export wrote, or that was changed"),
    ):
        whole = (out / "x" / name).read_bytes() if name else b""
        if name:
            (out / "x" / name).write_bytes(whole + b"my addition")
        before = contents(out)
        assert app.main([*words, kind]) == 2
        assert message in capsys.readouterr().err
        assert contents(out) == before
        if name:
            (out / "x" / name).write_bytes(whole)
    card = out / "x/README.md"
    card.rename(out / "card.md")
    for target in ("card.md", "nothing"):  # a link to the unchanged file, and one to no file
        card.symlink_to(out / target)
        assert app.main([*words, "hf"]) == 2
        assert "a README.md that no export wrote" in capsys.readouterr().err
        assert card.readlink() == out / target
        card.unlink()


@pytest.mark.parametrize("last", range(1, 6))
def test_an_export_that_was_killed_is_repeated(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = ("model.safetensors", "config.json", "README.md")
    write_export(tmp_path, {"step": 1}, dict.fromkeys(names, b"old"))
    written = []

    def write(path: Path, content: bytes) -> None:
        if len(written) == last:
            raise KeyboardInterrupt
        written.append(path)
        write_atomically(path, content)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(export_folder, "write_atomically", write)
        write_export(tmp_path, {"step": 2}, dict.fromkeys(names, b"new"))
    assert {(tmp_path / name).read_bytes() for name in names} <= {b"old", b"new"}
    write_export(tmp_path, {"step": 2}, dict.fromkeys(names, b"new"))
    assert {(tmp_path / name).read_bytes() for name in names} == {b"new"}


def test_overlays_and_results_do_not_replace_foreign_files(world: Path, out: Path):
    shutil.copytree(world / "davis/Annotations/480p", out / "masks")
    words = ["davis", "--davis", str(world / "davis"), "--evaluate-only", str(out / "masks"), "--overlay"]
    for kind in ("png", "mp4"):
        assert app.main([*words, kind]) == app.main([*words, kind]) == 0  # the second replaces its own
        (out / f"masks/bear.{kind}").write_bytes(MINE[2])
        before = contents(out)
        assert app.main([*words, kind]) == 2
        assert contents(out) == before
    assert run("test", world, out) == 0
    (folder,) = (path for path in (out / "runs/tuned/test").iterdir() if path.is_dir() and path.name.startswith("step"))
    shutil.rmtree(folder / "parts")  # nothing is left that shows the origin of the files
    before = contents(out)
    assert run("test", world, out) == 2
    assert contents(out) == before
