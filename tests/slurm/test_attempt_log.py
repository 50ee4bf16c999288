import json
from pathlib import Path

import pytest

from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm.attempt_log import AttemptLog


def test_a_node_is_excluded_after_two_attempts_or_at_once_if_it_is_bad(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    assert attempts.excluded_nodes() == {}
    attempts.log_failure(Attempt(job="7", restart=0), EndReason.KILLED, 0, "a")
    attempts.log_failure(Attempt(job="7", restart=0), EndReason.NODE_DOWN, 0, "a")  # the same attempt
    attempts.log_failure(Attempt(job="7", restart=1), EndReason.LOST_PEERS, 0)
    assert attempts.excluded_nodes() == {}
    attempts.log_failure(Attempt(job="8", restart=0), EndReason.NODE_DOWN, 0, "a")
    attempts.log_failure(Attempt(job="8", restart=0), EndReason.BAD_NODE, 0, "b")
    assert list(attempts.excluded_nodes()) == ["a", "b"]
    assert attempts.excluded_nodes()["b"] == "a node or its GPU failed"
    attempts.path.unlink()
    assert attempts.excluded_nodes() == {}


def test_only_failures_since_the_last_new_checkpoint_count(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    for restart, step in enumerate((0, 0, 500, 500, 500)):
        attempts.log_failure(Attempt(job="7", restart=restart), EndReason.LOST_PEERS, step)
        attempts.log_failure(Attempt(job="7", restart=restart), EndReason.NODE_DOWN, step, "a")
    attempts.log_failure(Attempt(job="6", restart=0), EndReason.LOST_PEERS, 500)
    assert attempts.failures_without_progress("7") == 3
    assert attempts.failures_without_progress("6") == 1


def test_failures_of_all_jobs_of_a_chain_count(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    for job in ("6", "7", "8"):
        attempts.log_failure(Attempt(job=job, restart=0), EndReason.LOST_PEERS, 500)
    assert attempts.failures_without_progress("7", "8") == 2


def test_the_excluded_node_that_failed_last_comes_last(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    for restart, node in enumerate("bacb"):
        attempts.log_failure(Attempt(job="7", restart=restart), EndReason.BAD_NODE, 0, node)
    assert list(attempts.excluded_nodes()) == ["a", "c", "b"]


def test_the_last_start_is_remembered(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    assert attempts.last_start() is None
    attempts.log_start(Attempt(job="7", restart=0), ["a", "b"])
    attempts.log_start(Attempt(job="7", restart=1), ["a", "c"])
    assert attempts.last_start() == (Attempt(job="7", restart=1), ["a", "c"])
    attempts.log_failure(Attempt(job="7", restart=1), EndReason.NODE_DOWN, 0, "c")
    assert attempts.has_failure(Attempt(job="7", restart=1), "c")
    assert not attempts.has_failure(Attempt(job="7", restart=0), "c")


GOOD = {"what": "failure", "job": "1", "restart": 0, "reason": "bad_node", "step": 0, "node": "n1", "time": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        *({"node": node} for node in ("n1\ntouch INJECTED", "n1 \\'", "-x", "n1,n2", "n[1-2]", "ü", "n" * 300, 7)),
        {"what": "other"},
        {"what": None},
        {"reason": "unheard of"},
        {"step": "0"},
        {"step": -1},
        {"restart": [0]},
        {"job": "1; rm -rf ~"},
        {"what": "start", "nodes": ["n1", "n2\n"]},
        {"what": "start", "nodes": "n1"},
    ],
    ids=str,
)
def test_a_row_of_another_form_is_ignored_with_a_warning(
    change: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = AttemptLog(tmp_path)
    attempts.path.write_text(f"{json.dumps(GOOD | change)}\n{json.dumps(GOOD | {'node': 'n2'})}\n")
    assert list(attempts.excluded_nodes()) == ["n2"]
    assert attempts.last_start() is None
    assert caplog.text.count("ignoring rows of another form") == 1
    assert "INJECTED" not in caplog.text


def test_a_failure_without_a_true_node_still_counts(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    attempts.log_failure(Attempt(job="7", restart=0), EndReason.KILLED, 0, "not a node")
    assert attempts.failures_without_progress("7") == 1
    assert attempts.excluded_nodes() == {}


def test_the_highest_step_since_the_job_was_last_queued(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    assert attempts.last_step_id("7") == -1
    for job, restart, step in (("7", 0, 9), ("7", 1, 4), ("7", 1, 2), ("8", 0, 6)):
        attempts.log_start(Attempt(job=job, restart=restart), ["a"], launch=3, step_id=step)
    assert attempts.last_step_id("7") == 4
    assert attempts.last_step_id("8") == 6
    assert attempts.last_step_id("6") == -1


def test_rows_name_everything_that_identifies_an_attempt(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    attempts.log_start(Attempt(job="7", restart=1, start=2), ["a", "b"])
    attempts.log_failure(Attempt(job="7", restart=1, start=2), EndReason.KILLED, 40, "b")
    first, second = (json.loads(line) for line in attempts.path.read_text().splitlines())
    assert {key: value for key, value in first.items() if key != "time"} == {
        "what": "start", "job": "7", "restart": 1, "start": 2, "nodes": ["a", "b"], "launch": 1, "step_id": 0,
    }  # fmt: skip
    assert {key: value for key, value in second.items() if key != "time"} == {
        "what": "failure", "job": "7", "restart": 1, "start": 2, "reason": "killed", "step": 40, "node": "b",
    }  # fmt: skip
    assert not attempts.has_failure(Attempt(job="7", restart=1, start=1), "b")
    assert not attempts.has_failure(Attempt(job="8", restart=1, start=2), "b")
    assert not attempts.has_failure(Attempt(job="7", restart=1, start=2), "a")


def test_starts_inside_an_allocation_are_attempts_of_their_own(tmp_path: Path) -> None:
    attempts = AttemptLog(tmp_path)
    for start, reason in enumerate((EndReason.KILLED, EndReason.NODE_DOWN, EndReason.HUNG)):
        attempts.log_failure(Attempt(job="7", restart=0, start=start), reason, 0, "a")
    assert attempts.failures_without_progress("7") == 3
    assert attempts.excluded_nodes() == {"a": "a node went down and a step hung"}  # the last two
