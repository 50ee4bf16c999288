import sys
import threading
import time
from pathlib import Path

import pytest

from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm.attempt_log import AttemptLog
from slurm.batch import excluded_nodes
from slurm.batch.excluded_nodes import (
    arrange_review,
    cancel_review,
    change_list,
    own_exclusions,
    plan,
    postponed_review,
    review,
)
from slurm.job_state import JobRecord
from slurm.scontrol import parse_job
from tests.slurm.fakes.controller import PENDING, REFUSED, RUNNING, Controller, fail_on
from tests.training.launch import wait_until

SHOW, SCRIPT, UP = "scontrol show job -o 7", "scontrol write batch_script 7 -", "sinfo"
TEST = "sbatch --parsable --test-only --exclude="


def _own(run: Path, nodes: str) -> None:
    JobRecord("slurm", "7", "/logs/7_0_log.out", "/code", 1.0, exclude=nodes).write(run)


def test_a_run_that_has_not_failed_avoids_no_node_and_asks_nothing(tmp_path: Path, controller: Controller) -> None:
    assert plan(tmp_path, "7") == []
    assert controller.calls == []


def test_the_nodes_of_the_oldest_failures_are_used_again_first(tmp_path: Path, controller: Controller) -> None:
    fail_on(tmp_path, "node1", "node2", "node3")
    _own(tmp_path, "node[8-9]")
    controller.answers |= {SHOW: RUNNING, SCRIPT: "#!/bin/sh", f"{TEST}node8,node9,node1": REFUSED}
    assert plan(tmp_path, "7") == ["node2", "node3"]
    assert controller.called(TEST)[-1] == f"{TEST}node8,node9,node2,node3"
    assert set(controller.scripts) == {"#!/bin/sh"}
    controller.answers[TEST] = REFUSED
    controller.answers |= {f"{TEST}node8,node9": "", f"{TEST}node8,node9,": REFUSED}
    assert plan(tmp_path, "7") == []


@pytest.mark.parametrize(
    ("job", "up", "avoided"),
    [
        (RUNNING, "node1 node2 node3 node4", ["node1", "node2"]),  # as many others as the job needs
        (RUNNING, "node1 node2 node3", ["node2"]),
        (RUNNING, "node1 node2", []),
        (RUNNING, "node1 node2 node3 node9", ["node2"]),  # the user excludes node9
        (RUNNING, "", ["node1", "node2"]),  # sinfo does not answer
        ("", "node1 node2", ["node1", "node2"]),  # neither does the controller
    ],
)
def test_without_the_job_s_script_the_nodes_that_are_up_are_counted(
    tmp_path: Path, controller: Controller, job: str, up: str, avoided: list[str]
) -> None:
    fail_on(tmp_path, "node1", "node2")
    _own(tmp_path, "node9")
    controller.answers |= {SHOW: job, SCRIPT: REFUSED, UP: up}
    assert plan(tmp_path, "7") == avoided
    assert controller.called(TEST) == []
    if job:
        assert controller.called(UP) == ["sinfo -h -N -p low -r -t idle,mixed,alloc,comp,resv -o %N"]


def test_nodes_are_counted_if_slurm_could_not_even_start_the_job_on_all(tmp_path: Path, controller: Controller) -> None:
    fail_on(tmp_path, "node1")
    controller.answers |= {SHOW: RUNNING, SCRIPT: "#!/bin/sh", TEST: REFUSED, UP: "node1 node2 node3"}
    assert plan(tmp_path, "7") == ["node1"]


def test_the_user_s_own_exclusions_stay(tmp_path: Path) -> None:
    assert own_exclusions(tmp_path) == []
    _own(tmp_path, "node[7-8]")
    assert own_exclusions(tmp_path) == ["node7", "node8"]
    (tmp_path / "job.json").write_text("{")
    assert own_exclusions(tmp_path) == []


@pytest.mark.parametrize("line", ["", "JobState=COMPLETED NodeList=node1"])
def test_a_job_that_has_ended_is_not_reviewed(tmp_path: Path, controller: Controller, line: str) -> None:
    fail_on(tmp_path, "node1")
    controller.answers[SHOW] = line
    review(tmp_path, "7")
    assert controller.calls == [SHOW]


def test_the_review_of_a_job_that_runs_is_postponed(tmp_path: Path, controller: Controller) -> None:
    fail_on(tmp_path, "node1")
    controller.answers |= {SHOW: RUNNING, "squeue": "9"}
    review(tmp_path, "7")
    assert controller.called("scontrol update") == ["scontrol update JobId=9 StartTime=now+120"]


def test_a_job_that_runs_without_its_batch_script_is_requeued(
    tmp_path: Path, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.answers |= {SHOW: RUNNING, "squeue": "9"}
    controller.answers["scontrol show node -o node1"] = "NodeName=node1 State=DOWN* Reason=Not responding"
    review(tmp_path, "7")
    assert controller.called("scontrol requeue") == ["scontrol requeue 7"]
    assert controller.called("scontrol update") == ["scontrol update JobId=9 StartTime=now+120"]
    assert "node node1 of the batch script is down: job 7 is requeued" in capsys.readouterr().out
    controller.answers["scontrol show node -o node1"] = "NodeName=node1 State=MIXED"
    review(tmp_path, "7")
    assert len(controller.called("scontrol requeue")) == 1


@pytest.mark.parametrize(("pause", "next_pause"), [(30, 60), (449, 898), (500, 900)])
def test_a_waiting_job_gets_the_new_list_and_the_next_review(
    tmp_path: Path, controller: Controller, pause: int, next_pause: int
) -> None:
    fail_on(tmp_path, "node1", "node2")
    controller.answers |= {SHOW: f"{PENDING}node1", SCRIPT: "#!/bin/sh"}
    review(tmp_path, "7", pause)
    assert f"#SBATCH --begin=now+{pause}\n" in controller.scripts[-1]
    assert f" 7 {next_pause} && exit\n" in controller.scripts[-1]
    assert controller.called("scontrol update") == ["scontrol update JobId=7 ExcNodeList=node1,node2"]


def test_the_first_review_comes_soon(tmp_path: Path, controller: Controller) -> None:
    fail_on(tmp_path, "node1")
    controller.answers |= {SHOW: f"{PENDING}(null)", SCRIPT: "#!/bin/sh"}
    review(tmp_path, "7")
    assert "#SBATCH --begin=now+30\n" in controller.scripts[-1]


def test_a_job_that_a_node_refused_is_released(
    tmp_path: Path, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason, released in (("launch_failed_requeued_held", True), ("JobHeldUser", False), ("Resources", False)):
        controller.calls.clear()
        controller.answers[SHOW] = f"{PENDING}(null) Reason={reason}"
        review(tmp_path, "7")
        assert controller.called("scontrol release") == ["scontrol release 7"] * released
        assert ("a node refused to start it: released" in capsys.readouterr().out) == released
    controller.answers |= {SHOW: f"{PENDING}(null) Reason=launch_failed_requeued_held", "scontrol release": REFUSED}
    review(tmp_path, "7")
    assert capsys.readouterr().out == ""


def test_a_job_that_has_lost_a_node_is_reviewed_without_a_list(tmp_path: Path, controller: Controller) -> None:
    controller.answers[SHOW] = f"{PENDING}(null)"
    lost = AttemptLog(tmp_path)
    lost.log_failure(Attempt(job="6", restart=0), EndReason.NODE_DOWN, 0, "node1")  # of another job
    lost.log_failure(Attempt(job="7", restart=0), EndReason.KILLED, 0, "node3")
    review(tmp_path, "7", 30)
    assert controller.scripts == []
    lost.log_failure(Attempt(job="7", restart=0), EndReason.NODE_DOWN, 0, "node2")
    review(tmp_path, "7", 30)
    assert " 7 60 && exit\n" in controller.scripts[-1]


def test_no_node_is_excluded_without_a_review(tmp_path: Path, controller: Controller) -> None:
    fail_on(tmp_path, "node1")
    _own(tmp_path, "node8")
    controller.answers |= {SHOW: f"{PENDING}node1", SCRIPT: "#!/bin/sh", "sbatch --parsable": REFUSED, TEST: ""}
    review(tmp_path, "7")
    assert controller.called("scontrol update") == ["scontrol update JobId=7 ExcNodeList=node8"]


def test_a_list_is_changed_only_if_it_differs(
    tmp_path: Path, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_on(tmp_path, "node2", "node1")
    job = parse_job(f"{PENDING}node[1-2]")
    assert change_list(tmp_path, "7", job, ["node2", "node1"])
    assert (controller.calls, capsys.readouterr().out) == ([], "")
    assert change_list(tmp_path, "7", job, ["node1"])
    assert controller.calls == ["scontrol update JobId=7 ExcNodeList=node1"]
    assert "failed before on node2, but too few other nodes are up: used again" in capsys.readouterr().out
    assert change_list(tmp_path, "7", job, ["node1", "node2", "node3"])
    assert capsys.readouterr().out == ""
    controller.answers["scontrol update"] = REFUSED
    assert not change_list(tmp_path, "7", job, [])


def test_a_review_is_a_small_job_that_may_run_anywhere(tmp_path: Path, controller: Controller) -> None:
    controller.answers[SHOW] = RUNNING
    assert arrange_review(tmp_path, "7", 45, 90)
    code = Path(excluded_nodes.__file__).parents[2]
    assert controller.scripts == [
        "#!/bin/sh\n#SBATCH --job-name=review-7\n#SBATCH --begin=now+45\n#SBATCH --nodes=1\n#SBATCH --ntasks=1\n"
        "#SBATCH --cpus-per-task=1\n#SBATCH --time=5\n#SBATCH --output=/dev/null\n"
        f"#SBATCH --chdir={code}\n#SBATCH --partition=low\n#SBATCH --account=vision\n"
        "#SBATCH --requeue\n#SBATCH --open-mode=append\n"
        f"{sys.executable} -m slurm.batch.excluded_nodes {tmp_path} 7 90 && exit\n"
        "trap '' TERM  # of the requeue\n"
        "failed=$(scontrol show job -o $SLURM_JOB_ID | sed -n 's/.*ExcNodeList=\\([^ (]*\\).*/\\1/p')\n"
        "scontrol requeue $SLURM_JOB_ID\n"
        "scontrol update JobId=$SLURM_JOB_ID StartTime=now+60 ExcNodeList=${failed:+$failed,}$SLURMD_NODENAME\n"
    ]
    assert controller.calls == [
        "squeue -h --me -n review-7 -t PENDING -o %i", "scontrol show job -o 7", "sbatch --parsable",
    ]  # fmt: skip
    assert arrange_review(tmp_path, "7", 45)
    assert " 7 30 && exit\n" in controller.scripts[-1]
    controller.answers["sbatch"] = REFUSED
    assert not arrange_review(tmp_path, "7", 45)


def test_a_review_that_waits_is_moved_or_replaced(tmp_path: Path, controller: Controller) -> None:
    controller.answers |= {"squeue": "9\n10"}
    assert arrange_review(tmp_path, "7", 45)
    assert controller.calls[1:] == ["scontrol update JobId=9 StartTime=now+45"]
    controller.answers["scontrol update"] = REFUSED  # it has just begun
    assert arrange_review(tmp_path, "7", 45)
    assert len(controller.scripts) == 1


def test_the_review_of_a_finished_run_is_cancelled(controller: Controller) -> None:
    cancel_review("7")
    assert controller.called("scancel") == []
    controller.answers["squeue"] = "9\n10"
    cancel_review("7")
    assert controller.called("scancel") == ["scancel 9 10"]


def test_a_run_that_trains_keeps_postponing_its_review(
    tmp_path: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    arranged: list[int] = []
    many = threading.Event()

    def note(run: Path, job_id: str, seconds: int) -> bool:
        arranged.append(seconds)
        if len(arranged) == 3:
            many.set()
        return True

    monkeypatch.setattr(excluded_nodes, "arrange_review", note)
    monkeypatch.setattr(excluded_nodes, "POSTPONE_SECONDS", 0.02)
    fail_on(tmp_path, "node1")
    controller.answers[SHOW] = f"{RUNNING} ExcNodeList=node2"  # the user's own
    with postponed_review(tmp_path, "7", no_kill=False):
        time.sleep(0.05)
    assert arranged == []
    controller.answers[SHOW] = f"{RUNNING} ExcNodeList=node[1-2]"
    with postponed_review(tmp_path, "7", no_kill=False):
        assert many.wait(30)
    time.sleep(0.03)
    count = len(arranged)
    time.sleep(0.1)
    assert len(arranged) == count
    assert set(arranged) == {0.02}


def test_a_job_that_has_lost_a_node_has_a_review_that_waits(tmp_path: Path, controller: Controller) -> None:
    """No node is excluded yet. Slurm may requeue the job onto the lost node, which refuses it."""
    controller.answers[SHOW] = RUNNING
    with postponed_review(tmp_path, "7", no_kill=False):
        time.sleep(0.05)
    assert controller.scripts == []
    AttemptLog(tmp_path).log_failure(Attempt(job="7", restart=0), EndReason.NODE_DOWN, 0, "node1")
    with postponed_review(tmp_path, "7", no_kill=False):
        wait_until(lambda: controller.scripts, "the review")
    assert "#SBATCH --begin=now+120\n" in controller.scripts[0]


def test_a_job_that_slurm_keeps_without_its_batch_script_has_a_review(tmp_path: Path, controller: Controller) -> None:
    controller.answers[SHOW] = RUNNING
    with postponed_review(tmp_path, "7", no_kill=True):
        wait_until(lambda: controller.scripts, "the review")
