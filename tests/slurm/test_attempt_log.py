from pathlib import Path

from slurm.attempt_log import Attempt, Attempts
from slurm.failure_cause import Cause


def test_a_node_is_left_out_after_two_attempts_or_one_pre_flight(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.excluded() == {}
    attempts.failed(Attempt("7", 0), Cause.KILLED, 0, "a")
    attempts.failed(Attempt("7", 0), Cause.NODE_DOWN, 0, "a")  # the same attempt
    attempts.failed(Attempt("7", 1), Cause.LOST_PEERS, 0)
    assert attempts.excluded() == {}
    attempts.failed(Attempt("8", 0), Cause.NODE_DOWN, 0, "a")
    attempts.failed(Attempt("8", 0), Cause.BAD_NODE, 0, "b")
    assert list(attempts.excluded()) == ["a", "b"]
    assert "pre-flight" in attempts.excluded()["b"]
    attempts.path.unlink()
    assert attempts.excluded() == {}


def test_only_failures_since_the_last_new_checkpoint_count(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    for restart, step in enumerate((0, 0, 500, 500, 500)):
        attempts.failed(Attempt("7", restart), Cause.LOST_PEERS, step)
        attempts.failed(Attempt("7", restart), Cause.NODE_DOWN, step, "a")
    attempts.failed(Attempt("6", 0), Cause.LOST_PEERS, 500)
    assert attempts.failures_without_progress("7") == 3
    assert attempts.failures_without_progress("6") == 1


def test_the_last_start_is_remembered(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.last_start() is None
    attempts.started(Attempt("7", 0), ["a", "b"])
    attempts.started(Attempt("7", 1), ["a", "c"])
    assert attempts.last_start() == (Attempt("7", 1), ["a", "c"])
    attempts.failed(Attempt("7", 1), Cause.NODE_DOWN, 0, "c")
    assert attempts.knows(Attempt("7", 1), "c")
    assert not attempts.knows(Attempt("7", 0), "c")
