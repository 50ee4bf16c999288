from collections.abc import Iterator
from pathlib import Path

import pytest

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm import scontrol
from slurm.batch import requeue_policy
from slurm.batch.requeue_policy import RequeuePolicy
from slurm.batch.step_failure import Failure
from slurm.scontrol import JobState


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[JobState | None]]:
    """What Slurm's controller answers about the job, in turn."""
    left: list[JobState | None] = []
    monkeypatch.setattr(requeue_policy, "CONTROLLER_PAUSE", 0.0)
    monkeypatch.setattr(scontrol, "show_job", lambda _: left.pop(0))
    monkeypatch.setattr(scontrol, "down_nodes", lambda nodes: {})
    yield left
    assert left == []


def _decide(run: Path, lost: set[str]) -> list[str]:
    policy = RequeuePolicy(RunFolder(run), Attempt(job="7", restart=0), 5, signal_seconds=120)
    return policy.decide(Failure(EndReason.NODE_DOWN, "node2"), lost, [2])


def _running(seconds_left: float = 3600, **changes: object) -> JobState:
    held = {"detail": "node[1-3]", "batch_host": "node1", "seconds_left": seconds_left}
    return JobState("RUNNING", **{**held, **changes})  # type: ignore[arg-type]


def test_a_batch_host_that_is_cut_off_blames_no_other_node(tmp_path: Path, answers: list[JobState | None]) -> None:
    """When its cable is plugged in again, Slurm has long requeued the job."""
    answers += [None, None, _running(restarts=1)]
    assert _decide(tmp_path, {"node2", "node3"}) == []
    assert not (tmp_path / "attempts.jsonl").exists()


def test_a_requeue_by_rank_0_is_no_failure(tmp_path: Path, answers: list[JobState | None]) -> None:
    """The supervisor hears of the end of rank 0 before Slurm has carried out the requeue."""
    answers += [_running(), JobState("PENDING", restarts=1)]
    policy = RequeuePolicy(RunFolder(tmp_path), Attempt(job="7", restart=0), 5)
    assert policy.decide(Failure(EndReason.CRASHED, status=255), (), [2]) == []
    assert not (tmp_path / "attempts.jsonl").exists()


def test_a_lost_node_is_left_out(tmp_path: Path, answers: list[JobState | None]) -> None:
    answers += [None, _running()]
    assert _decide(tmp_path, {"node2"}) == ["node1", "node3"]
    assert '"node": "node2"' in (tmp_path / "attempts.jsonl").read_text()


@pytest.mark.parametrize(
    "job",
    [
        _running(seconds_left=60),  # the signal to save will not come again
        _running(preempted=True),
        _running(batch_host="node4"),  # Slurm has given up the node of the batch script
    ],
)
def test_the_queue_is_better(
    tmp_path: Path, answers: list[JobState | None], monkeypatch: pytest.MonkeyPatch, job: JobState
) -> None:
    requeued = []
    monkeypatch.setattr(RequeuePolicy, "requeue", lambda _, pause=0: requeued.append(pause))
    answers += [job]
    assert _decide(tmp_path, set()) == []
    assert requeued == [0]
