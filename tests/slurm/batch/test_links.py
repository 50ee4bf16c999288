"""Chain of jobs with a controller that answers as Slurm does."""

from pathlib import Path

import pytest

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from slurm.batch.chain import MOST_STALLED, Chain
from slurm.job_state import JobRecord
from tests.slurm.fakes.controller import REFUSED, Controller

WAITS = "JobState=PENDING Reason=Dependency"


@pytest.fixture
def run(tmp_path: Path, controller: Controller) -> RunFolder:
    """A run whose job 7 has ended, with job 8 behind it; two shall wait."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "8_submitted.pkl").write_text("job 8")
    _record(tmp_path)
    controller.answers |= {"scontrol show job -o 7": "JobState=PREEMPTED NodeList=n1", "scontrol write": "#!/bin/sh"}
    controller.answers["sbatch"] = ["21", "22"]
    return RunFolder(tmp_path)


def _record(run: Path, *chain: str, **values: int) -> None:
    log = f"{run}/logs/7_0_log.out"
    record = JobRecord("slurm", "7", log, "/code", 1.0, exclude="node9", chain=chain or ("7", "8"), links=2, **values)
    record.write(run)


def _chain(run: RunFolder) -> tuple[str, tuple[str, ...]]:
    record = JobRecord.read(run.path)
    assert record is not None
    return record.job_id, record.chain


def test_a_link_submits_the_links_that_are_missing(run: RunFolder, controller: Controller) -> None:
    assert Chain(run, "8").take_over(5) is None
    assert _chain(run) == ("8", ("7", "8", "21", "22"))
    options = "--dependency=singleton --exclude=node9 --export=ALL,MOTIONMAE_CHAIN_LINK=1"
    assert controller.called("sbatch") == [f"sbatch --parsable {options}"] * 2
    assert controller.called("scontrol write") == ["scontrol write batch_script 8 -"]
    assert controller.called("scancel") == []
    for link in ("21", "22"):
        assert (run.path / f"logs/{link}_submitted.pkl").read_text() == "job 8"


def test_only_links_that_live_are_counted(run: RunFolder, controller: Controller) -> None:
    _record(run.path, "7", "8", "9", "10")
    controller.answers |= {"scontrol show job -o 9": "JobState=CANCELLED", "scontrol show job -o 10": WAITS}
    assert Chain(run, "8").take_over(5) is None
    assert _chain(run) == ("8", ("7", "8", "10", "21"))


def test_slurm_may_refuse_further_links(
    run: RunFolder, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.answers["sbatch"] = ["21", REFUSED]
    Chain(run, "8").take_over(5)
    assert _chain(run)[1] == ("7", "8", "21")
    assert "Slurm refused a further job of the chain: Access denied" in capsys.readouterr().out


@pytest.mark.parametrize(("stalled", "links"), [(MOST_STALLED - 1, 2), (MOST_STALLED, 0)])
def test_a_chain_without_progress_ends(run: RunFolder, stalled: int, links: int) -> None:
    _record(run.path, step=5, stalled=stalled)
    assert Chain(run, "8").take_over(5) is None
    assert len(_chain(run)[1]) == 2 + links


def test_progress_starts_the_count_again(run: RunFolder) -> None:
    _record(run.path, step=5, stalled=MOST_STALLED)
    Chain(run, "8").take_over(6)
    record = JobRecord.read(run.path)
    assert record is not None
    assert (record.step, record.stalled, len(record.waiting)) == (6, 0, 2)


def test_two_jobs_of_a_chain_do_not_train_at_once(run: RunFolder, controller: Controller) -> None:
    controller.answers["scontrol show job -o 7"] = "JobState=RUNNING NodeList=n1"
    assert Chain(run, "8").take_over(5) is EndReason.FINISHED
    assert _chain(run)[0] == "7"
    assert controller.called("sbatch") == []


def test_a_job_that_waits_again_is_replaced_by_its_link(run: RunFolder, controller: Controller) -> None:
    controller.answers["scontrol show job -o 7"] = "JobState=PENDING Reason=BeginTime"
    assert Chain(run, "8").take_over(5) is None
    assert controller.called("scancel") == ["scancel 7"]


def test_a_link_behind_a_cancelled_job_ends_with_all_others(run: RunFolder, controller: Controller) -> None:
    _record(run.path, "7", "8", "9")
    controller.answers["scontrol show job -o 7"] = "JobState=CANCELLED Reason=None"
    assert Chain(run, "8").take_over(5) is EndReason.STOPPED
    assert controller.called("scancel") == ["scancel 9"]
    assert _chain(run) == ("8", ("7", "8"))


def test_the_job_of_the_run_only_fills_its_chain(run: RunFolder, controller: Controller) -> None:
    (run.path / "logs/7_submitted.pkl").write_text("job 7")
    controller.answers["scontrol show job -o 8"] = WAITS
    assert Chain(run, "7").take_over(5) is None
    assert _chain(run) == ("7", ("7", "8", "21"))
    record = JobRecord.read(run.path)
    assert record is not None
    assert (record.step, record.stalled) == (0, 0)


def test_closing_cancels_what_waits_and_only_that(
    run: RunFolder, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    _record(run.path, "6", "7", "8", "9")
    Chain(run, "8").close()  # not the run's job
    assert controller.calls == []
    controller.answers["scancel"] = REFUSED
    Chain(run, "7").close()
    assert controller.calls == ["scancel 8 9"]
    assert _chain(run) == ("7", ("6", "7"))
    assert "cannot cancel the jobs of the chain: 8, 9 will end" in capsys.readouterr().out
    Chain(run, "7").close()
    assert len(controller.calls) == 1


@pytest.mark.parametrize(
    ("line", "waits", "goes_on"),
    [("JobState=COMPLETING", True, True), ("JobState=RUNNING", True, False), ("", True, False),
     ("JobState=COMPLETING", False, False)],
)  # fmt: skip
def test_a_job_that_slurm_ends_for_good_leaves_the_run_to_a_link(
    run: RunFolder, controller: Controller, line: str, waits: bool, goes_on: bool
) -> None:
    _record(run.path, "7", *(["8"] if waits else []))
    controller.answers["scontrol show job -o 7"] = line
    assert Chain(run, "7").goes_on_without() is goes_on


def test_the_next_link_that_lives_gets_the_changes(run: RunFolder, controller: Controller) -> None:
    _record(run.path, "7", "8", "9")
    controller.answers |= {"scontrol show job -o 8": "JobState=CANCELLED", "scontrol show job -o 9": WAITS}
    assert Chain(run, "7").hand_over({"StartTime": "now+60"}) == "9"
    assert Chain(run, "7").hand_over({}) == "9"
    assert controller.called("scontrol update") == ["scontrol update JobId=9 StartTime=now+60"]
    assert Chain(run, "8").hand_over({"StartTime": "now+60"}) == ""
