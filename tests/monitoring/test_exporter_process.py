"""Monitoring around a training process: a full run, and failures that must not reach training."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monitoring import exporter_process
from monitoring.exporter import END
from monitoring.rank_snapshots import clear, node_folder, read_all
from motionmae import __version__
from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.events import Kind
from tests.monitoring.runs import ROOT, FedRun, config_of, label_of
from tests.training.launch import wait_until


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """A run of one rank with its own temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return config_of(tmp_path / "runs")


def target_of(config: Config) -> Path:
    return Path(config.output_dir) / f".sd/{label_of(Path(config.output_dir))}-0.json"


def test_the_exporter_ignores_signals_of_a_scheduler(alone: Config, tmp_path: Path):
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 0}
    exporter = exporter_process.start_exporter(alone, place, tmp_path)
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        exporter.send_signal(number)  # before it has even started Python
    wait_until(target_of(alone).exists, "the target")
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        exporter.send_signal(number)
    assert exporter.poll() is None
    exporter_process.end_exporter(exporter, END, 0)
    assert exporter.returncode == 0
    assert not target_of(alone).exists()


def test_the_exporter_dies_with_a_killed_trainer_and_its_target_stays(alone: Config, tmp_path: Path):
    script = (
        "import sys, time\nfrom monitoring.exporter_process import monitoring_sinks\n"
        "from tests.monitoring.runs import config_of\n"
        f"with monitoring_sinks(config_of({alone.output_dir!r})):\n    print('up', flush=True)\n    time.sleep(99)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    wait_until(target_of(alone).exists, "the target")
    children = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split()
    trainer.kill()
    trainer.communicate()
    assert len(children) == 1
    wait_until(lambda: not Path(f"/proc/{children[0]}").exists(), "the end of the exporter")
    assert target_of(alone).exists()


def test_a_finished_run_leaves_no_target(alone: Config, tmp_path: Path):
    with exporter_process.monitoring_sinks(alone) as sinks:
        for sink in sinks:
            sink.event({"attempt": "a", "kind": Kind.START.value, "step": 0, "time": 1.0, "world": 1})
            sink.event({"attempt": "a", "kind": Kind.FINISH.value, "step": 0, "time": 2.0})
        wait_until(target_of(alone).exists, "the target")
        (folder,) = (tmp_path / f"motionmae-{os.getuid()}").iterdir()
        (snapshot,) = read_all(folder)
        assert (snapshot.rank, snapshot.pid, snapshot.attempt) == (0, os.getpid(), "a")
    assert not target_of(alone).exists()


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (UserError("no shards"), False),
        (LeaseLost("by a newer one"), False),
        (KeyboardInterrupt(), False),
        (RuntimeError("a bug"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_target_stays_only_after_a_crash(error: BaseException, stays: bool, alone: Config):
    def train() -> None:
        wait_until(target_of(alone).exists, "the target")
        raise error

    with pytest.raises(type(error)), exporter_process.monitoring_sinks(alone):
        train()
    assert target_of(alone).exists() == stays


def test_an_interrupt_while_monitoring_begins_leaves_no_target(alone: Config, monkeypatch: pytest.MonkeyPatch):
    def interrupted(config: Config) -> dict[str, str]:
        wait_until(target_of(config).exists, "the target")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter_process, "run_labels", interrupted)
    with pytest.raises(KeyboardInterrupt), exporter_process.monitoring_sinks(alone):
        pass
    assert not target_of(alone).exists()


def test_a_start_that_is_refused_leaves_no_target(alone: Config, tmp_path: Path):
    words = ["--config", "tiny_ut_interaction", "name=never", "data.shards=nope", f"output_dir={alone.output_dir}"]
    ended = subprocess.run(
        [sys.executable, "-m", "motionmae", "pretrain", *words],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "has no metrics" not in ended.stderr
    assert not list(Path(alone.output_dir).glob(".sd/*"))


def test_training_continues_without_a_snapshot_folder(alone: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / f"motionmae-{os.getuid()}").write_text("no folder")
    with exporter_process.monitoring_sinks(alone) as sinks:
        assert sinks == []
    assert "is not monitored" in caplog.text


def test_it_can_be_switched_off(alone: Config, tmp_path: Path):
    with exporter_process.monitoring_sinks(config_of(tmp_path / "runs", enabled=False)) as sinks:
        assert sinks == []
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_one_warning_and_the_next_row_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.READY, 0, total_steps=9)
    before = (tmp_path / "0.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        run.metrics(1)
        run.metrics(2)
    assert len([record for record in caplog.records if "training continues" in record.message]) == 1
    assert (tmp_path / "0.json").read_text() == before
    run.metrics(3)
    assert ["step", {}, 3] in json.loads((tmp_path / "0.json").read_text())["samples"]


def test_the_snapshot_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert node_folder("job").stat().st_mode & 0o077 == 0
    mine = tmp_path / f"motionmae-{os.getuid()}"
    mine.rename(tmp_path / "moved")
    mine.symlink_to(tmp_path / "moved")
    with pytest.raises(PermissionError, match="not a private folder of this user"):
        node_folder("job")


def test_expired_folders_are_deleted(tmp_path: Path):
    for name, age in (("mine", 0), (f"yesterday-{12 * 'a'}", 1), (f"forgotten-{12 * '0'}", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.json").write_text("{}")
        os.utime(tmp_path / name, (time.time() - age * 86400,) * 2)
    clear(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.glob("*/0.json")) == ["0.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", f"yesterday-{12 * 'a'}"]


def test_expired_folders_of_other_content_stay(tmp_path: Path):
    for name, file in (("mine", "0.json"), ("notes", "notes.txt"), ("mixed", "0.json"), ("empty", "")):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_text("{}")
    (tmp_path / "mixed" / "0.json.bak").write_text("{}")
    (tmp_path / "link").symlink_to("notes")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 10 * 86400,) * 2, follow_symlinks=False)
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    clear(tmp_path / "mine")
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path != tmp_path / "mine" / "0.json"]


@pytest.mark.parametrize(
    ("variables", "rank", "node"),
    [
        ({}, 3, 0),
        ({"LOCAL_WORLD_SIZE": "2"}, 3, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, 17, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "8,12(x2)"}, 8, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "8,12(x2)"}, 19, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "8,12(x2)"}, 31, 2),
        ({"SLURM_NODEID": "3", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "32"}, 5, 3),  # a cyclic distribution
        ({"GROUP_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, 3, 2),
    ],
)
def test_the_number_of_a_node(variables: dict[str, str], rank: int, node: int, monkeypatch: pytest.MonkeyPatch):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "GROUP_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert exporter_process.node_of({"RANK": rank, "WORLD_SIZE": 32}) == node


def test_a_repository_around_the_packages_is_not_their_revision(tmp_path: Path):
    """As pip leaves them in an environment that lies in somebody else's checkout."""
    packages = tmp_path / "site-packages"
    for name in ("motionmae", "monitoring"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    script = (
        "from monitoring.exporter_process import run_labels\nfrom motionmae.config import Config\n"
        "print(run_labels(Config())['git_sha'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=packages, env=environment, check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == f"motionmae {__version__}"
