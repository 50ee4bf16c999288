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
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from motionmae.config import Config, EngineConfig, save_config
from motionmae.distributed import stop_requests
from motionmae.distributed.process_group import distributed
from motionmae.distributed.stop_requests import Request, Stopped, StopRequests, StopSignals
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import read_rows
from tests.training.engine_workers import await_signal
from tests.training.launch import Ranks, run_ranks, wait_until
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
    for rank, numbers in signals.items():
        for number in numbers:
            ranks.send(rank, number)
    (tmp_path / "go").touch()
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


def test_a_signal_is_a_flag_and_the_most_urgent_counts():
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    with StopSignals() as signals:
        assert signals.level == 0
        assert signals.former[signal.SIGTERM] == former[signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert signals.level == 1
        signal.raise_signal(signal.SIGUSR2)
        assert signals.level == 2
        signal.raise_signal(signal.SIGTERM)
        assert signals.level == 2
    assert {number: signal.getsignal(number) for number in former} == former


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGTERM, EndReason.TERMINATED),
        (signal.SIGHUP, EndReason.TERMINATED),
        (signal.SIGUSR2, EndReason.PREEMPTED),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_while_there_is_nothing_to_save_a_signal_ends_the_rank_at_once(
    number: signal.Signals, reason: EndReason, inside: bool
):
    with StopSignals() as signals:
        with signals.immediate():
            pass
        if not inside:
            signal.raise_signal(number)
        with pytest.raises(Stopped) as found, signals.immediate():
            signal.raise_signal(number)
        assert found.value.end is reason
        assert "nothing was lost" in str(found.value)
        signal.raise_signal(number)  # after the block it is a flag again


@pytest.mark.parametrize("inside", [True, False])
def test_ctrl_c_before_training_is_an_interrupt(inside: bool, capfd: pytest.CaptureFixture[str]):
    with StopSignals() as signals:
        if not inside:
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="nothing was lost"), signals.immediate():
            signal.raise_signal(signal.SIGINT)
    assert ("saving after the next step" in capfd.readouterr().err) is not inside


@pytest.mark.parametrize(("rank", "told"), [("0", True), ("1", False)])
def test_one_rank_tells_the_user_about_the_save(
    rank: str, told: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", rank)
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
    assert ("press Ctrl-C again" in capfd.readouterr().err) is told


def test_a_closed_terminal_swallows_what_is_printed(tmp_path: Path):
    terminal = os.open(tmp_path / "terminal", os.O_WRONLY | os.O_CREAT)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with StopSignals() as signals:
        signals._terminal_outputs = [terminal]
        os.write(terminal, b"before")
        signal.raise_signal(signal.SIGTERM)
        os.write(terminal, b" and after SIGTERM")
        signal.raise_signal(signal.SIGHUP)
        os.write(terminal, b", but not after it was closed")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(terminal)
    assert (tmp_path / "terminal").read_bytes() == b"before and after SIGTERM"


def test_only_signals_of_the_terminal_stay_ignored():
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.level == 0
            signal.raise_signal(signal.SIGTERM)
            assert signals.level == 1
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _ask(folder: str, now: list[float]) -> list[object]:
    """Answers of both ranks to the requests of a file, of a signal on rank 1, and of both."""
    found: list[object] = []
    with distributed(EngineConfig(device="cpu")) as rank, StopSignals() as signals:
        stop_requests.time = SimpleNamespace(monotonic=lambda: now[0])  # type: ignore[assignment]
        requests = StopRequests(signals, Path(folder), rank.is_rank_zero)
        stop, save = Path(folder) / "stop", Path(folder) / "save"

        def agree(seconds: float = 10.0) -> Request:
            dist.barrier()
            now[0] += seconds
            requests.begin_sync()
            answer = requests.finish_sync()
            found.append((answer.end and answer.end.value, answer.save, stop.exists(), save.exists()))
            dist.barrier()
            return answer

        def create(*paths: Path) -> None:
            if rank.is_rank_zero:
                for path in paths:
                    path.touch()
            dist.barrier()

        requests.clear(agree())  # nothing
        create(save)
        agree(0.75)  # too early for a look at the files
        requests.clear(agree(0.25))  # a save
        agree(0.0)  # done
        create(stop, save)
        request = agree()
        if not rank.is_rank_zero:
            requests.clear(request)  # rank 0 alone removes files
        agree()
        requests.clear(request)
        agree(0.0)
        if rank.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        create(save)
        requests.clear(agree())
        create(stop)
        agree()  # the file is more urgent
        if rank.is_rank_zero:
            stop.unlink()
            stop.mkdir()  # somebody's folder
        dist.barrier()
        requests.clear(agree())
    return found


def test_all_ranks_agree_on_files_and_signals(tmp_path: Path):
    zero, one = run_ranks(2, _ask, str(tmp_path), [1000.0])
    assert [answer[:2] for answer in zero] == [answer[:2] for answer in one]
    assert zero == [
        (None, False, False, False),
        (None, False, False, True),
        (None, True, False, True),
        (None, False, False, False),
        ("stopped", True, True, True),
        ("stopped", True, True, True),
        (None, False, False, False),
        ("terminated", True, False, True),
        ("stopped", False, True, False),
        ("terminated", False, True, False),
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "stop"]
