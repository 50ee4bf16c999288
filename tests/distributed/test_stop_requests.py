"""Real signals to real ranks."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from motionmae.config import Config, save_config
from motionmae.distributed.stop_requests import StopSignals
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import read_rows
from tests.training.engine_workers import await_signal
from tests.training.launch import Ranks, wait_until
from tests.training.shards import make_shards, tiny_run


@pytest.mark.parametrize(
    ("signals", "outcome"),
    [
        ({1: [signal.SIGUSR2]}, "PREEMPTED"),
        ({0: [signal.SIGTERM]}, "TERMINATED"),
        ({0: [signal.SIGTERM], 1: [signal.SIGUSR2]}, "PREEMPTED"),
        ({0: [signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM]}, "PREEMPTED"),
        ({1: [signal.SIGHUP]}, "TERMINATED"),
    ],
)
def test_a_signal_to_any_rank_reaches_all(tmp_path: Path, signals: dict[int, list[signal.Signals]], outcome: str):
    ranks = Ranks(2, await_signal, tmp_path)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be ready")
    for rank in (0, 1):
        ranks.send(rank, signal.SIGSTOP)  # all signals of a case then arrive before the next check
    for rank, numbers in signals.items():
        for number in numbers:
            ranks.send(rank, number)
    for rank in (0, 1):
        ranks.send(rank, signal.SIGCONT)
    assert ranks.results() == [(outcome, 0), (outcome, 1)]


@contextmanager
def at_a_terminal(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, int, RunFolder]]:
    """Start a long run on a terminal; yield its process, our end of the terminal, and its folder."""
    settings: Config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs", optim={"epochs": 10_000})
    settings = settings.updated({"checkpoint.every_steps": 10_000})
    save_config(settings, tmp_path / "run.yaml")
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "motionmae", "pretrain", "--config", str(tmp_path / "run.yaml")]
    with subprocess.Popen(
        argv,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(theirs)
        folder = RunFolder(tmp_path / "runs" / "tiny")
        try:
            wait_until(lambda: folder.metrics.is_file() and len(list(read_rows(folder.metrics))) > 2, "some steps")
            yield process, ours, folder
        finally:
            process.kill()


def read_to_the_end(terminal: int) -> bytes:
    shown = b""
    with suppress(OSError):  # EIO at the end
        while part := os.read(terminal, 4096):  # a terminal gives at most this at once
            shown += part
    return shown


def assert_saved_at_the_end(process: subprocess.Popen, folder: RunFolder) -> None:
    assert process.wait(timeout=300) == EndReason.TERMINATED.exit_code
    (saved,) = CheckpointStore(folder.checkpoints).complete()
    assert saved.step == list(read_rows(folder.metrics))[-1]["step"]
    assert list(read_rows(folder.events))[-1]["reason"] == "terminated"


def test_ctrl_c_saves(tmp_path: Path):
    with at_a_terminal(tmp_path) as (process, ours, folder):
        os.write(ours, b"\x03")
        assert_saved_at_the_end(process, folder)
        assert b"saving after the next step" in read_to_the_end(ours)


def test_a_second_ctrl_c_ends_the_process_at_once(capfd: pytest.CaptureFixture[str]):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.level == 1
        assert "press Ctrl-C again to exit without saving" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_ignored_from_the_start_stay_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.level == 0
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_closed_terminal_saves(tmp_path: Path):
    with at_a_terminal(tmp_path) as (process, ours, folder):
        os.close(ours)
        assert_saved_at_the_end(process, folder)
