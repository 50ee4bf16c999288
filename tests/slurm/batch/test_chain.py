"""Chain of jobs. Slurm's commands are missing here, as on a node without them; the lab has the real ones."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import append_row
from slurm import scontrol
from slurm.batch.chain import LINK_VARIABLE, MOST_STALLED, Chain, dependency_of_link
from slurm.job_state import JobRecord


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose job 7 has ended, with the jobs 8 and 9 behind it, on a node without Slurm's commands."""
    monkeypatch.setenv("PATH", "")
    JobRecord("slurm", "7", f"{tmp_path}/7_0_log.out", "/code", 1.0, chain=("7", "8", "9"), links=2).write(tmp_path)
    return RunFolder(tmp_path)


@pytest.mark.parametrize(
    ("given", "dependency"),
    [("", "singleton"), ("afterok:4", "afterok:4,singleton"), ("afterok:4?afterany:5", "singleton")],
)
def test_a_link_waits_for_the_jobs_before_it_and_for_what_the_user_asked(given: str, dependency: str) -> None:
    assert dependency_of_link(given) == dependency


def test_a_link_takes_the_run_over(run: RunFolder) -> None:
    assert Chain(run, "8").take_over(newest_step=5) is None
    record = JobRecord.read(run.path)
    assert record is not None
    assert (record.job_id, record.log) == ("8", f"{run.path}/8_0_log.out")
    assert (record.chain, record.waiting) == (("7", "8", "9"), ("9",))
    assert Chain(run, "8").hand_over({"StartTime": "now+60"}) == "9"
    assert Chain(run, "9").hand_over({}) == ""


def test_only_the_next_link_gets_changes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(scontrol, "update", lambda job_id, changes: changed.append((job_id, changes)))
    Chain(run, "7").hand_over({})
    assert changed == []
    assert Chain(run, "7").hand_over({"StartTime": "now+60"}) == "8"
    assert changed == [("8", {"StartTime": "now+60"})]


def test_a_missing_link_is_submitted(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[str] = []

    def submit(script: str, *options: str) -> CompletedProcess[str]:
        submitted.append(f"{script} {' '.join(options)}")
        return CompletedProcess([], 0, str(10 + len(submitted)), "")

    monkeypatch.setattr(scontrol, "batch_script", "script of {}".format)
    monkeypatch.setattr(scontrol, "submit_script", submit)
    (run.path / "8_submitted.pkl").write_bytes(b"the job")
    Chain(run, "8").take_over(newest_step=5)  # one link is left of two
    (call,) = submitted
    assert call.startswith("script of 8 --dependency=singleton ")
    assert f"{LINK_VARIABLE}=1" in call
    record = JobRecord.read(run.path)
    assert record is not None
    assert record.waiting == ("9", "11")
    assert (run.path / "11_submitted.pkl").read_bytes() == b"the job"


def test_a_link_that_finds_the_run_finished_ends_at_once(run: RunFolder) -> None:
    row = {"number": 1, "host": "n1", "hosts": ["n1"], "world": 1, "job": "7", "restart": 0, "age": 0.0}
    append_row(run.events, attempt="a", kind="start", step=0, **row)
    append_row(run.events, attempt="a", kind="finish", step=9)
    assert Chain(run, "8").take_over(9) is EndReason.FINISHED


def test_a_link_that_was_left_over_ends_at_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Chain(run, "6").take_over(0) is None  # a first job, whose record is not yet written
    monkeypatch.setenv(LINK_VARIABLE, "1")
    assert Chain(run, "6").take_over(0) is EndReason.STOPPED
    Chain(run, "7").close()
    assert Chain(run, "8").take_over(0) is EndReason.STOPPED


def test_links_without_progress_are_counted(run: RunFolder) -> None:
    Chain(run, "8").take_over(newest_step=0)
    Chain(run, "9").take_over(newest_step=0)
    record = JobRecord.read(run.path)
    assert record is not None
    assert 0 < record.stalled == 2 < MOST_STALLED
    assert record.step == 0


def test_a_run_without_a_chain_is_left_alone(tmp_path: Path) -> None:
    chain = Chain(RunFolder(tmp_path), "7")
    assert chain.take_over(0) is None
    assert chain.jobs == ("7",)
    chain.close()
    assert not (tmp_path / "job.json").exists()
