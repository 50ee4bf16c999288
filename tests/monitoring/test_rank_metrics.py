"""Counts of rank 0 over all attempts of a run, as its snapshot shows them, and FLOPs of a clip."""

from pathlib import Path

import pytest

from monitoring.rank_metrics import flops_per_clip_of
from monitoring.rank_snapshots import read_all
from motionmae.config import load_config
from motionmae.planning.flops import step_flops
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


@pytest.mark.parametrize("mode", ["full", "linear", "attentive"])
def test_flops_of_fine_tuning_match_the_plan(mode: str):
    config = load_config("finetune_vitb_k400", [f"finetune.mode={mode}"])
    work = flops_per_clip_of(config)
    assert work.flops == step_flops(config).model
    assert work.tokens == config.clip.cubes


def test_pre_training_encodes_the_visible_cubes_only():
    config = load_config("vitb_k400", ["mask.ratio=0.75"])
    assert flops_per_clip_of(config).flops == step_flops(config).model
    assert flops_per_clip_of(config).tokens == config.clip.cubes // 4
