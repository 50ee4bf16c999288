import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from motionmae.config import load_config
from slurm import local_executor
from slurm.job_state import JobRecord, state_of
from slurm.local_executor import LocalController
from tests.slurm.fakes.jobs import ROOT, Starter
from tests.training.launch import wait_until


def _starts(run: Path, rank: int = 0) -> int:
    path = run / f"starts_{rank}"
    return len(path.read_text().split()) if path.exists() else 0


def _end(run: Path, record: JobRecord) -> int | None:
    wait_until(lambda: not state_of(record, run).active, "the ranks")
    return state_of(record, run).exit_code


def test_a_job_that_finishes_has_status_0(tmp_path: Path, start: Starter) -> None:
    record = start(tmp_path, {0: ["done"], 1: ["done"]})
    assert _end(tmp_path, record) == 0
    assert (_starts(tmp_path, 0), _starts(tmp_path, 1)) == (1, 1)
    assert "Job completed successfully" in Path(record.log).read_text()


def test_usr2_to_the_controller_requeues_the_job(tmp_path: Path, start: Starter) -> None:
    record = start(tmp_path, {0: ["wait", "done"], 1: ["wait", "done"]})
    wait_until(lambda: _starts(tmp_path, 1) == 1, "the ranks")
    os.kill(int(record.job_id), signal.SIGUSR2)
    assert _end(tmp_path, record) == 0
    assert (_starts(tmp_path, 0), _starts(tmp_path, 1)) == (2, 2)


def test_an_early_signal_waits_for_the_handlers_of_the_ranks(tmp_path: Path, start: Starter) -> None:
    record = start(tmp_path, {0: ["wait", "done"], 1: ["wait", "done"]})
    children = Path(f"/proc/{record.job_id}/task/{record.job_id}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, "the ranks")
    os.kill(int(record.job_id), signal.SIGUSR2)
    assert _starts(tmp_path) == 0
    assert _end(tmp_path, record) == 0
    assert _starts(tmp_path) == 2


def test_a_job_may_be_preempted_more_often_than_submitit_retries(tmp_path: Path, start: Starter) -> None:
    acts = {0: [*["exit 144"] * 8, "done"]}
    assert _end(tmp_path, start(tmp_path, acts)) == 0
    assert _starts(tmp_path) == 9


def test_term_stops_the_job_for_good(tmp_path: Path, start: Starter) -> None:
    record = start(tmp_path, {0: ["wait"], 1: ["wait"]})
    wait_until(lambda: _starts(tmp_path, 1) == 1, "the ranks")
    os.kill(int(record.job_id), signal.SIGTERM)
    assert _end(tmp_path, record) == 143
    assert _starts(tmp_path) == 1


def test_ranks_stop_when_their_controller_is_killed(tmp_path: Path, start: Starter) -> None:
    record = start(tmp_path, {0: ["wait"], 1: ["wait"]})
    wait_until(lambda: _starts(tmp_path, 0) == _starts(tmp_path, 1) == 1, "the ranks")
    ranks = Path(f"/proc/{record.job_id}/task/{record.job_id}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(record.job_id), signal.SIGKILL)
    wait_until(lambda: not any(_runs(rank) for rank in ranks), "the end of the ranks")
    assert state_of(record, tmp_path).name == "GONE"


def _runs(process: str) -> bool:
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_time_limit_requeues_until_the_time_outs_are_used_up(tmp_path: Path, start: Starter) -> None:
    record = start(tmp_path, {0: ["wait"]}, time=1, signal_seconds=59, max_timeouts=1)
    assert _end(tmp_path, record) == 1
    assert _starts(tmp_path) == 2
    assert "timed-out too many times" in Path(record.log).read_text()


@pytest.mark.parametrize(("act", "status"), [("exit 3", 3), ("kill 9", 137)])
def test_a_rank_that_fails_ends_the_others(
    act: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.local_executor.STRAGGLER_SECONDS", 0.5)
    code = {"exit 3": "raise SystemExit(3)", "kill 9": "import os; os.kill(os.getpid(), 9)"}[act]
    text = f"import os, time\nif os.environ['SUBMITIT_LOCAL_LOCALID'] == '1': {code}\ntime.sleep(60)"
    for key, value in {
        "NTASKS": "2",
        "COMMAND": "unused",
        "TIMEOUT_S": "60",
        "SIGNAL_DELAY_S": "1",
        "WITH_SHELL": "",
    }.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{key}", value)
    monkeypatch.setenv("SUBMITIT_STDERR_TO_STDOUT", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        controller = LocalController(tmp_path)
        controller.command = [sys.executable, "-c", text]
        start = time.monotonic()
        assert controller.run_to_end() == status
        assert time.monotonic() - start < 10
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_job_outlives_the_session_of_the_process_that_submitted_it(tmp_path: Path) -> None:
    text = f"""
from pathlib import Path
from tests.slurm.fakes.jobs import start_job
print(start_job(Path({str(tmp_path)!r}), {{0: ["wait", "done"]}}).job_id)
"""
    job_id = subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    record = JobRecord.read(tmp_path)
    assert record is not None
    assert record.job_id == job_id.strip()
    assert os.getsid(int(record.job_id)) == int(record.job_id)
    wait_until(lambda: _starts(tmp_path) == 1, "the ranks")
    assert state_of(record, tmp_path).active
    os.kill(int(record.job_id), signal.SIGUSR2)
    assert _end(tmp_path, record) == 0


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([0, 0], 0), ([0, 3], 3), ([-9, 3], 3), ([-9, 0], 137), ([0, -15], 143), ([None, 0], 124), ([None, -9], 137),
        ([None, 4], 4), ([3, 4], 3),
    ],
)  # fmt: skip
def test_the_status_of_a_job_is_that_of_its_first_failed_rank(codes: list[int | None], status: int) -> None:
    assert local_executor._job_status(codes) == status


class Task:
    """A rank that ends with a status at a time of the clock."""

    def __init__(self, clock: "Clock", status: int | None, at: float) -> None:
        self.clock, self.status, self.at = clock, status, at

    def poll(self) -> int | None:
        return self.status if self.clock.now >= self.at else None


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds == 0.1
        self.now += 0.5


@pytest.mark.parametrize(
    ("ends", "codes", "ended", "signals"),
    [
        ([(0, 3), (0, 5)], [0, 0], 5, []),
        ([(3, 2), (None, 0)], [3, None], 22.5, []),  # the others have 20 s
        ([(3, 2), (0, 4)], [3, 0], 4, []),
        ([(144, 55), (144, 56)], [144, 144], 56, [50.5]),  # once, 50 s before the time limit of 100 s
        ([(None, 0), (None, 0)], [None, None], 100.5, [50.5]),
        ([(3, 90), (None, 0)], [3, None], 100.5, [50.5]),
    ],
)
def test_the_controller_waits_signals_and_gives_up(
    ends: list[tuple[int | None, float]], codes: list[int | None], ended: float, signals: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clock, sent = Clock(), []
    monkeypatch.setattr(local_executor, "time", clock)
    controller = LocalController.__new__(LocalController)
    controller.timeout_s, controller.signal_delay_s = 100, 50
    controller.tasks = [Task(clock, *end) for end in ends]  # type: ignore[misc]
    monkeypatch.setattr(controller, "_forward_signal", lambda number: sent.append((number, clock.now)), raising=False)
    assert controller.wait() == codes
    assert clock.now == ended
    assert sent == [(signal.SIGUSR2, moment) for moment in signals]


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_controller_gets_what_submitit_and_the_ranks_need(
    gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, object]]] = []

    class Started:
        pid = 77

        def __init__(self, command: list[str], **values: object) -> None:
            started.append((command, values))

    monkeypatch.setattr(local_executor.subprocess, "Popen", Started)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    launch = load_config("demo", [
        "launch.time=9", "launch.signal_seconds=33", "launch.max_timeouts=4", f"launch.gpus_per_node={gpus}",
        "launch.ntasks_per_node=2",
    ]).launch  # fmt: skip
    executor = local_executor.DetachedLocalExecutor(
        tmp_path, tmp_path / "run", tmp_path / "code", launch, {"A": "b"}, 8
    )
    job = executor._submit_command("the command")
    ((command, values),) = started
    assert (job.job_id, len(job._tasks), executor.max_num_timeout) == ("77", 2, 4)
    assert command == [sys.executable, "-m", "slurm.local_executor", str(tmp_path), str(tmp_path / "run")]
    assert (values["cwd"], values["start_new_session"], values["pass_fds"]) == (tmp_path / "code", True, [8])
    environment = values["env"]
    assert isinstance(environment, dict)
    assert environment.items() >= {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_COMMAND": "the command", "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "33",
        "SUBMITIT_LOCAL_TIMEOUT_S": "540", "SUBMITIT_LOCAL_WITH_SHELL": "", "SUBMITIT_STDERR_TO_STDOUT": "1",
    }.items()  # fmt: skip
    assert (environment["A"], environment["CUDA_VISIBLE_DEVICES"]) == ("b", "5" if gpus else "")
    assert (tmp_path / "controller.log").exists()
