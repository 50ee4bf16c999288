import pytest

from motionmae.runs.end_reason import EndReason
from slurm.batch.step_failure import Ended, Failure, failed_nodes, find_cause, find_failure

STEP = "srun: launch/slurm: _step_signal: Terminating StepId=1.0"


@pytest.mark.parametrize(
    ("lines", "failure"),
    [
        # in the order in which Slurm 22.05 prints them
        (
            ["srun: error: node2: task 1: Killed", STEP, "srun: error: node1: task 0: Exited with exit code 76"],
            Failure(EndReason.KILLED, "node2", 137),
        ),
        (
            ["srun: error: node1: task 0: Exited with exit code 76", STEP, "srun: error: node2: task 1: Terminated"],
            Failure(EndReason.LOST_PEERS, "", 76),
        ),
        (
            ["srun: error: node1: task 0: Terminated", "srun: error: node2: task 1: Exited with exit code 2"],
            Failure(EndReason.USER_ERROR, "", 2),
        ),
        (["srun: error: node[3-4]: tasks 0-1: Exited with exit code 77"], Failure(EndReason.BAD_NODE, "node3", 77)),
        (["srun: error: gpu7: task 12: Segmentation fault (core dumped)"], Failure(EndReason.KILLED, "gpu7", 137)),
        (["srun: error: gpu7: task 12: Aborted (core dumped)"], Failure(EndReason.KILLED, "", 137)),
        (["srun: error: gpu7: task 12: Out Of Memory"], Failure(EndReason.KILLED, "", 137)),
        (["srun: error: node1: tasks 0-1,3: Exited with exit code 1"], Failure(EndReason.CRASHED, "", 1)),
        (
            [f"srun: error: node1: task {task}: Exited with exit code {status}" for task, status in ((1, 76), (0, 74))],
            Failure(EndReason.NO_STORAGE, "", 74),
        ),
        (["srun: error: node1: task 0: Exited with exit code 79"], Failure(EndReason.HUNG, "", 79)),
        (["srun: error: node1: task 0: Exited with exit code 143"], Failure(EndReason.TERMINATED, "", 143)),
        (
            ["srun: error: Task launch for StepId=5.0 failed on node node2: Communication connection failure"],
            Failure(EndReason.NOT_STARTED, "node2"),
        ),
        (["srun: error: Unable to create step for job 3: Job/step already completing"], Failure(EndReason.NOT_STARTED)),
        ([], Failure(EndReason.NOT_STARTED)),
    ],
)
def test_the_cause_is_found_in_srun_s_messages(lines: list[str], failure: Failure) -> None:
    assert find_failure(lines) == failure


@pytest.mark.parametrize(
    ("ended", "lines", "reason"),
    [
        (
            [Ended("node1", 76), Ended("node2")],
            ["srun: error: node2: task 1: Exited with exit code 79"],
            EndReason.HUNG,
        ),
        ([Ended("node2"), Ended("node1", 76)], ["srun: error: node2: task 1: Killed"], EndReason.KILLED),
        ([Ended("node1", 76), Ended("node2", 2)], [], EndReason.USER_ERROR),
        ([Ended("node1", 76), Ended("node2")], ["srun: error: node2: task 1: Terminated"], EndReason.LOST_PEERS),
        ([Ended("node2"), Ended("node1", 76)], [], None),
    ],
)
def test_the_cause_of_an_attempt_is_its_first_end_unless_another_says_more(
    ended: list[Ended], lines: list[str], reason: EndReason | None
) -> None:
    cause = find_cause(ended, lines)
    assert (cause.reason if cause else None) == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (2, EndReason.USER_ERROR), (81, EndReason.STOPPED), (80, EndReason.LEASE_LOST), (77, EndReason.BAD_NODE),
        (74, EndReason.NO_STORAGE), (75, EndReason.PREEMPTED),
    ],
)  # fmt: skip
def test_what_a_rank_says_of_itself_counts_more_than_that_ranks_lost_each_other(status: int, reason: EndReason) -> None:
    lines = [
        f"srun: error: node{task}: task {task}: Exited with exit code {code}" for task, code in ((1, 76), (2, status))
    ]
    node = "node2" if reason is EndReason.BAD_NODE else ""
    assert find_failure(lines) == Failure(reason, node, status)
    assert find_cause([Ended("node1", 76), Ended("node2", status)], []) == Failure(reason, node, status)


@pytest.mark.parametrize("end", ["Killed", "Segmentation fault", "Bus error", "Illegal instruction"])
def test_the_node_is_blamed_for_a_signal_of_its_own(end: str) -> None:
    assert find_failure([f"srun: error: node3: task 1: {end}"]) == Failure(EndReason.KILLED, "node3", 137)


def test_nodes_that_slurm_has_found_dead() -> None:
    lines = ["srun: error: node1: task 0: Killed", "srun: error: Node failure on node[2-3]", "srun: done"]
    assert failed_nodes(lines) == ["node2", "node3"]
    assert failed_nodes(lines[:1]) == []
