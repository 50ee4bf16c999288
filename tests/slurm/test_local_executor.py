import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.job_state import JobRecord, state_of
from slurm.local_executor import LocalController
from tests.slurm.jobs import ROOT, Starter
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
from tests.slurm.jobs import start_job
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
