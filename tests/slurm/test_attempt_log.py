from pathlib import Path

from motionmae.runs.attempt import Attempt
from motionmae.runs.end_reason import EndReason
from slurm.attempt_log import Attempts


def test_a_node_is_left_out_after_two_attempts_or_one_pre_flight(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.excluded() == {}
    attempts.failed(Attempt(job="7", restart=0), EndReason.KILLED, 0, "a")
    attempts.failed(Attempt(job="7", restart=0), EndReason.NODE_DOWN, 0, "a")  # the same attempt
    attempts.failed(Attempt(job="7", restart=1), EndReason.LOST_PEERS, 0)
    assert attempts.excluded() == {}
    attempts.failed(Attempt(job="8", restart=0), EndReason.NODE_DOWN, 0, "a")
    attempts.failed(Attempt(job="8", restart=0), EndReason.BAD_NODE, 0, "b")
    assert list(attempts.excluded()) == ["a", "b"]
    assert "pre-flight" in attempts.excluded()["b"]
    attempts.path.unlink()
    assert attempts.excluded() == {}


def test_only_failures_since_the_last_new_checkpoint_count(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    for restart, step in enumerate((0, 0, 500, 500, 500)):
        attempts.failed(Attempt(job="7", restart=restart), EndReason.LOST_PEERS, step)
        attempts.failed(Attempt(job="7", restart=restart), EndReason.NODE_DOWN, step, "a")
    attempts.failed(Attempt(job="6", restart=0), EndReason.LOST_PEERS, 500)
    assert attempts.failures_without_progress("7") == 3
    assert attempts.failures_without_progress("6") == 1


def test_the_last_start_is_remembered(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.last_start() is None
    attempts.started(Attempt(job="7", restart=0), ["a", "b"])
    attempts.started(Attempt(job="7", restart=1), ["a", "c"])
    assert attempts.last_start() == (Attempt(job="7", restart=1), ["a", "c"])
    attempts.failed(Attempt(job="7", restart=1), EndReason.NODE_DOWN, 0, "c")
    assert attempts.knows(Attempt(job="7", restart=1), "c")
    assert not attempts.knows(Attempt(job="7", restart=0), "c")
