"""What rank 0 counts over all attempts of a run, seen in its snapshot."""

from pathlib import Path

from monitoring.rank_snapshots import read_all
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind
from tests.monitoring.runs import FedRun, config_of


def restarts(folder: Path) -> dict[str, float]:
    """Restarts by reason, those that happened."""
    (snapshot,) = read_all(folder)
    return {labels["reason"]: value for name, labels, value in snapshot.samples if name == "restarts_total" and value}


def test_starting_a_finished_run_again_is_no_restart(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    FedRun(config, tmp_path, "a").event(Kind.STOP, 4, reason=EndReason.CRASHED, error="RuntimeError")
    FedRun(config, tmp_path, "b").event(Kind.FINISH, 10)
    assert restarts(tmp_path) == {"failed": 1}
    for again in ("c", "d"):
        FedRun(config, tmp_path, again).event(Kind.FINISH, 10)
    FedRun(config, tmp_path, "e").event(Kind.STOP, 0, reason=EndReason.USER_ERROR, error="UserError")
    FedRun(config, tmp_path, "f")
    assert restarts(tmp_path) == {"failed": 1}
