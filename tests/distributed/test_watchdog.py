"""Hangs of real ranks and child processes, checked by their exit codes."""

import multiprocessing
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from motionmae.config import WatchdogConfig
from motionmae.distributed.watchdog import POLL_SECONDS, Watchdog
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import read_rows
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks
from tests.training.run_workers import pretrain_and_hang
from tests.training.shards import STEPS, make_shards, tiny_run


def test_a_rank_that_hangs_ends_all_ranks_with_their_stacks_and_the_run_resumes(tmp_path: Path):
    """Rank 1 sleeps; rank 0 waits for it in a collective, in C++."""
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs", watchdog={"step_seconds": 6})
    folder = RunFolder(config.run_folder)
    ranks = Ranks(2, pretrain_and_hang, config, 5)
    for process in ranks.processes:
        process.join(300)
        assert process.exitcode == EndReason.HUNG.exit_code, ranks.output()
    rows = list(read_rows(folder.events))
    assert [row["kind"] for row in rows[-2:]] == ["hang", "stop"]
    assert rows[-1]["reason"] == "hung"
    assert rows[-1]["error"] == "step 5 takes longer than the watchdog allows"
    first, last = (folder.logs / f"stacks_{rows[0]['attempt']}_rank{rank}.txt" for rank in (0, 1))
    assert Path(rows[-2]["stacks"]) == first
    assert "forward_backward" in first.read_text()
    assert "forward_backward_or_hang" in last.read_text()
    assert 'File "' in last.read_text()
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert [row["step"] for row in read_rows(folder.metrics)][-1] == STEPS


def in_child(act, *arguments) -> tuple[int, float]:
    """Run ``act`` in a child process; return its exit code and seconds."""
    process = multiprocessing.get_context("fork").Process(target=act, args=arguments)
    began = time.monotonic()
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode, time.monotonic() - began


def hang_after_slow_steps(stacks: Path) -> None:
    watchdog = Watchdog(WatchdogConfig(step_seconds=0.1, step_factor=5), stacks, print)
    watchdog.step(1)
    watchdog.expect("the first step, of which nothing is known", 60)
    for step in range(2, 5):
        time.sleep(1)
        watchdog.step(step)
    time.sleep(60)


def test_slow_steps_raise_the_limit_of_the_next_to_their_multiple(tmp_path: Path):
    status, seconds = in_child(hang_after_slow_steps, tmp_path / "stacks")
    assert status == EndReason.HUNG.exit_code
    assert seconds > 3 + 5
    assert (tmp_path / "stacks").read_text().startswith("step 4 takes longer")


def hang_in_a_thread(stacks: Path) -> None:
    watchdog = Watchdog(WatchdogConfig(), stacks, print)
    watchdog.step(1)
    with watchdog.during("writing", 0.2, thread="checkpoint-writer"):
        time.sleep(60)


def hang_in_the_report(stacks: Path) -> None:
    Watchdog(WatchdogConfig(step_seconds=0.1), stacks, lambda _: time.sleep(60)).step(1)
    time.sleep(60)


def test_a_thread_that_hangs_ends_the_process_even_if_the_report_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("motionmae.distributed.watchdog.REPORT_SECONDS", 1.0)
    for act in (hang_in_a_thread, hang_in_the_report):
        assert in_child(act, tmp_path / "stacks")[0] == EndReason.HUNG.exit_code


def lose_peers_meanwhile(stacks: Path) -> None:
    watchdog = Watchdog(WatchdogConfig(step_seconds=0.1), stacks, print)
    with closing(watchdog):
        watchdog.step(1)
        while not stacks.exists():
            time.sleep(0.01)
        raise RuntimeError("connection closed by peer")


def test_a_later_error_of_the_main_thread_does_not_replace_the_hang(tmp_path: Path):
    assert in_child(lose_peers_meanwhile, tmp_path / "stacks")[0] == EndReason.HUNG.exit_code


def work_with_pauses(stacks: Path) -> None:
    watchdog = Watchdog(WatchdogConfig(step_seconds=2.0), stacks, print)
    watchdog.step(1)
    with watchdog.during("saving", 60):
        time.sleep(3)  # does not count as time of the step
    with watchdog.during("anything", 0):
        time.sleep(2 * POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(2 * POLL_SECONDS)
    watchdog.close()


def test_neither_saves_nor_a_stopped_process_count_as_a_hang(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=work_with_pauses, args=(tmp_path / "stacks",))
    process.start()
    while (state := Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
        assert state != "Z", "it ended before it stopped"
        time.sleep(0.05)
    time.sleep(4)  # stopped for longer than a step may take
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    process.join(300)
    assert process.exitcode == 0


def test_a_pause_is_no_time_of_a_step_and_does_not_raise_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr("motionmae.distributed.watchdog.time", SimpleNamespace(monotonic=lambda: now))
    limits = []
    with closing(Watchdog(WatchdogConfig(step_seconds=1, step_factor=10), tmp_path / "stacks", print)) as watchdog:
        for step in range(1, 4):
            watchdog.step(step)
            with watchdog.during("saving", 60):
                now += 500
            now += 2  # a step takes two seconds
            monkeypatch.setattr(watchdog, "expect", lambda _, limit, *__: limits.append(limit))
    assert limits[0::2] == [10 * 2, 10 * 2]  # every second one is the pause's


@pytest.mark.parametrize(("compiles", "startup", "first"), [(False, 50, 7), (True, 50, 50), (True, 5, 7), (True, 0, 0)])
def test_the_first_step_of_a_compiled_model_has_the_limit_of_the_start(
    compiles: bool, startup: float, first: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = WatchdogConfig(step_seconds=7, startup_seconds=startup, step_factor=1)
    with closing(Watchdog(limits, tmp_path / "stacks", print, compiles)) as watchdog:
        found = []
        monkeypatch.setattr(watchdog, "expect", lambda what, limit: found.append((what, limit)))
        for number in (1, 2):
            watchdog.step(number)
    assert found == [("step 1", first), ("step 2", 7)]


class Clock:
    """Time of a watchdog whose thread has ended: the test takes its place."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.now, self.slept, self.ends = 1000.0, list[float](), list[tuple[float, str]]()
        self.watchdog = watchdog
        watchdog.close()
        watchdog._thread.join()
        watchdog._end = lambda sentence: self.ends.append((self.now, sentence))  # type: ignore[method-assign]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def poll(self, *pauses: float) -> None:
        """Let the watchdog look after each pause."""
        left = list(pauses)

        def wait(seconds: float) -> bool:
            assert seconds == 0.5
            if not left:
                return True
            self.now += left.pop(0)
            return False

        self.watchdog._closed = SimpleNamespace(wait=wait, set=lambda: None)  # type: ignore[assignment]
        self.watchdog._watch()


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(Watchdog(WatchdogConfig(step_seconds=3, step_factor=2), tmp_path / "stacks", print))
    monkeypatch.setattr("motionmae.distributed.watchdog.time", found)
    return found


def test_work_may_take_its_limit_and_no_longer(clock: Clock):
    clock.watchdog.expect("loading", 2)
    clock.watchdog.expect("writing", 9, thread="checkpoint-writer")
    clock.watchdog.expect("anything", 0, thread="other")  # no limit
    clock.poll(1.0, 1.0, 0.25)
    assert clock.ends == [(1002.25, "loading takes longer than the watchdog allows")]


@pytest.mark.parametrize(("pause", "ends"), [(2.0, True), (2.25, False)])
def test_a_process_that_stood_still_has_its_limit_again(clock: Clock, pause: float, ends: bool):
    """Four polls may be late; more is a suspended machine."""
    clock.watchdog.expect("loading", 1.5)
    clock.poll(pause)
    assert bool(clock.ends) is ends
    clock.ends.clear()
    clock.poll(1.5)
    assert bool(clock.ends) is ends
    clock.poll(0.5)
    assert clock.ends


def test_a_step_has_twice_the_median_of_the_steps_before(clock: Clock):
    limits = []
    for seconds in (0, 1, 5, 2, 1):
        clock.now += seconds
        clock.watchdog.step(1)
        what, deadline = clock.watchdog._current["main"]
        limits.append(deadline - clock.now)
    assert what == "step 1"
    assert limits == [3, 3, 6, 4, 3]  # medians of 1; 1 5; 1 5 2; 1 5 2 1: twice 1, 3, 2, 1.5, but at least 3


def test_work_inside_a_step_stops_the_clock_of_the_step(clock: Clock):
    clock.watchdog.step(1)
    with clock.watchdog.during("saving", 60):
        assert clock.watchdog._current["main"] == ("saving", 1060.0)
        clock.now += 10
    assert clock.watchdog._current["main"] == ("step 1", 1000 + 3 + 10)
    with pytest.raises(ZeroDivisionError), clock.watchdog.during("copying", 5):
        clock.now += 1 / 0
    assert clock.watchdog._current["main"] == ("step 1", 1013.0)
    with clock.watchdog.during("writing", 7, thread="checkpoint-writer"):
        clock.now += 2
        assert clock.watchdog._current["checkpoint-writer"] == ("writing", 1017.0)
    assert clock.watchdog._current["checkpoint-writer"] == ("", float("inf"))
    clock.watchdog.step(2)
    assert list(clock.watchdog._durations) == [2.0]  # the thread's work is no pause of the step


def test_without_a_limit_a_step_has_none(tmp_path: Path):
    with closing(Watchdog(WatchdogConfig(step_seconds=0), tmp_path / "stacks", print, compiles=True)) as watchdog:
        for number in (1, 2):
            watchdog.step(number)
            assert watchdog._current["main"] == (f"step {number}", float("inf"))


def test_the_end_of_a_hang_waits_for_the_report_and_the_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said, slept, synced = [], [], []
    watchdog = Watchdog(WatchdogConfig(), tmp_path / "stacks", lambda sentence: said.append((sentence, list(synced))))
    watchdog.close()
    monkeypatch.setattr("motionmae.distributed.watchdog.time", SimpleNamespace(sleep=slept.append))
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(str(Path(f"/proc/self/fd/{number}").readlink())), sync(number))
    )

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as found:
        watchdog._end("step 3 takes longer than the watchdog allows")
    assert found.value.code == 79
    assert slept == [5.0]
    assert watchdog._ending
    assert said == [("step 3 takes longer than the watchdog allows", [str(tmp_path / "stacks")])]
    first, blank, *stacks = (tmp_path / "stacks").read_text().splitlines()
    assert (first, blank) == (said[0][0], "")
    assert sum(line.startswith(("Thread ", "Current thread ")) for line in stacks) >= 2  # all threads


def test_a_report_that_hangs_is_given_up_after_20_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    joined = []

    class Thread:
        def __init__(self, target: object, args: tuple[str, ...], daemon: bool) -> None:
            assert daemon  # it must not keep the process

        def start(self) -> None:
            pass

        def join(self, seconds: float) -> None:
            joined.append(seconds)

    watchdog = Watchdog(WatchdogConfig(), tmp_path / "stacks", print)
    watchdog.close()
    module = "motionmae.distributed.watchdog"
    monkeypatch.setattr(f"{module}.threading", SimpleNamespace(Thread=Thread))
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(os, "_exit", lambda status: joined.append(status))
    watchdog._end("x")
    assert joined == [20.0, 79]
