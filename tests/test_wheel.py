"""The wheel: installed beside the libraries, every command works in an empty folder, without the clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import code_snapshot

ROOT = Path(__file__).resolve().parents[1]
TEN_STEPS = ["optim.epochs=2", "optim.warmup_epochs=1", "optim.global_batch_size=4", "engine.micro_batch_size=4"]

pytestmark = pytest.mark.long


def pip(*argv: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *argv]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the installed wheel. The build runs in a copy, because it leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = code_snapshot.collect(ROOT).write(folder)
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), cwd=sources)
    wheel = next(folder.glob("motionmae-*.whl"))
    pip("install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    shutil.rmtree(sources)
    return folder / "site"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The empty folder in which the commands of one test run."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def run(site: Path, here: Path, *argv: str) -> str:
    """Run the console script, which sees the wheel and the libraries of this environment, and return what it prints."""
    libraries = [path for path in sys.path if path.endswith("-packages")]
    ended = subprocess.run(
        [sys.executable, "-S", str(site / "bin/motionmae"), *argv],  # -S: no editable installation on the path
        cwd=here, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *libraries]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_guide_the_version_and_the_configs(site: Path, here: Path) -> None:
    assert "1. videos" in run(site, here)
    assert run(site, here, "--version") == "motionmae 0.1.0\n"
    assert "name: vitl_k400" in run(site, here, "config", "show", "vitl_k400")
    assert "  global_batch_size: 512" in run(site, here, "config", "show", "vitl_k400")
    shipped = run(site, here, "config", "list").splitlines()
    assert len(shipped) == len(list((ROOT / "configs").rglob("*.yaml")))
    for name in ("report.html", "style.css", "script.js"):
        assert (site / "monitoring/report" / name).is_file()
    assert (site / "motionmae/py.typed").is_file()
    assert list(here.iterdir()) == []


def test_a_submission_runs_the_installed_code(site: Path, here: Path, tmp_path: Path) -> None:
    script = run(site, here, "submit", "--nodes", "4", "--config", "vitl_k400", "--dry-run")
    assert "#SBATCH --nodes=4" in script.splitlines()
    taken = code_snapshot.collect(site)
    assert f"--chdir={here}/runs/vitl_k400/code/{taken.name}" in script
    copy = taken.write(tmp_path / "copy")
    shown = subprocess.run(
        [sys.executable, "-m", "motionmae", "config", "show", "vitl_k400"],
        cwd=copy, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "name: vitl_k400" in shown.stdout
    assert not (copy / "configs").exists()
    assert not (copy / "motionmae-0.1.0.dist-info").exists()


def test_shards_and_ten_steps(site: Path, here: Path) -> None:
    run(site, here, "shards", "toy", "--out", "data/toy_videos", "--train", "20", "--val", "0", "--size", "64")
    run(site, here, "shards", "make", "folder", "--videos", "data/toy_videos", "--split", "train", "--out", "data/toy")
    assert "is intact: 20 samples" in run(site, here, "shards", "verify", "data/toy")
    trained = run(site, here, "pretrain", "--config", "tiny_toy", "data.shards=data/toy", *TEN_STEPS)
    assert "runs/tiny_toy is complete after 10 steps" in trained
    start = json.loads((here / "runs/tiny_toy/events.jsonl").read_text().splitlines()[0])
    assert start["kind"] == "start"
