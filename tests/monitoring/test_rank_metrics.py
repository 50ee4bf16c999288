"""Counts of rank 0 over all attempts of a run, as its snapshot shows them, and FLOPs of a clip."""

import math
from pathlib import Path
from typing import Any

import pytest

from monitoring import rank_metrics
from monitoring.metric_definitions import STEP_BUCKETS
from monitoring.rank_metrics import flops_per_clip_of, peak_flops
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


class Values:
    """The samples in the snapshots of a run, by rank."""

    def __init__(self, folder: Path) -> None:
        self.snapshots = {snapshot.rank: snapshot for snapshot in read_all(folder)}

    def __call__(self, name: str, rank: int = 0, **labels: str) -> float | None:
        found = [value for key, with_, value in self.snapshots[rank].samples if key == name and with_ == labels]
        assert len(found) <= 1
        return found[0] if found else None


def test_a_row_counts_its_steps_and_the_time_of_a_step_falls_into_its_bucket(tmp_path: Path):
    run = FedRun(config_of(tmp_path / "runs", peak_tflops=2), tmp_path, ranks=2)
    run.event(Kind.READY, 0, total_steps=20)
    run.metrics(4, steps=4, seconds=0.5, clips_per_second=10.0)
    run.metrics(6, steps=2, seconds=0.75, clips_per_second=20.0)
    value = Values(tmp_path)
    assert value("step") == 6
    assert value("progress_ratio") == 0.3
    assert value("eta_seconds") == 14 * 0.75
    assert value("clips_total") == 4 * 10 * 0.5 + 2 * 20 * 0.75
    assert value("tokens_total") == 50 * 100
    assert value("flops_total") == 50e9
    assert value("mfu_ratio") == pytest.approx(20e9 / (2e12 * 2))  # of both ranks
    for rank in (0, 1):
        assert value("phase_seconds_total", rank, phase="forward") == pytest.approx(4 * 0.25 + 2 * 0.375)
    assert value.snapshots[0].histogram_sum == pytest.approx(4 * 0.5 + 2 * 0.75)
    buckets = value.snapshots[0].histogram
    assert len(buckets) == len(STEP_BUCKETS) + 1
    assert buckets[STEP_BUCKETS.index(0.5)] == 4  # a limit belongs to its bucket
    assert sum(buckets) == 6
    assert value.snapshots[1].histogram == []


def test_a_step_longer_than_all_limits_is_in_the_last_bucket(tmp_path: Path):
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.READY, 0, total_steps=20)
    run.metrics(1, seconds=1e6)
    assert Values(tmp_path).snapshots[0].histogram[-1] == 1


def test_what_events_announce(tmp_path: Path):
    run = FedRun(config_of(tmp_path / "runs"), tmp_path, ranks=2)
    run.event(Kind.RESUME, 4, seconds=7.0, source="memory")
    run.event(Kind.RESUME, 4, seconds=8.0)  # of an older version
    run.event(Kind.READY, 4, total_steps=20)
    run.event(Kind.CHECKPOINT, 6, path="p", bytes=9, seconds=3.0, blocking=4.0)  # clocks differ
    for _ in range(2):
        run.event(Kind.CHECKPOINT_FAILED, 6, error="full", failures=1)
        run.event(Kind.NONFINITE, 6, cause="gradient")
    run.event(Kind.CORRUPT_SAMPLE, 6, reasons={"decode": 2})
    run.event(Kind.CORRUPT_SAMPLE, 6, reasons={"decode": 5})  # all so far
    run.event(Kind.VALIDATION, 6, seconds=1.0, top1=25.0, top5=None, is_best=True)
    run.event(Kind.VALIDATION, 8, seconds=1.0, top1=20.0, is_best=False)
    value = Values(tmp_path)
    assert (value("resumes_total", source="memory"), value("resumes_total", source="disk")) == (1, 1)
    assert value("checkpoint_duration_seconds", op="restore", blocking="true") == 8
    assert value("checkpoint_duration_seconds", op="save", blocking="true") == 4
    assert value("checkpoint_duration_seconds", op="save", blocking="false") == 0
    assert value("checkpoint_failures_total") == 2
    assert value("nonfinite_steps_total", kind="gradient") == 2
    assert value("corrupt_samples_total", reason="decode") == 5
    assert value("validation_accuracy_ratio", by="top1") == 0.2
    assert value("validation_accuracy_ratio", by="top5") is None
    assert value("validation_best_step") == 6
    assert (value("step"), value("progress_ratio")) == (4, 0.2)
    assert [value("run_state", state=state) for state in ("starting", "training")] == [0, 1]
    assert value("dataloader_queue_capacity", 1) == config_of(tmp_path / "runs").data.prefetch


def test_lack_of_memory_is_counted_on_the_rank_that_lacked_it(tmp_path: Path):
    run = FedRun(config_of(tmp_path / "runs"), tmp_path, ranks=2)
    assert Values(tmp_path)("cuda_ooms_total", 1) == 0
    run.logs[1].event(Kind.STOP, 3, reason=EndReason.USER_ERROR, error="OutOfMemoryError: rank 1")
    run.logs[0].event(Kind.STOP, 3, reason=EndReason.CRASHED, error="RuntimeError")
    value = Values(tmp_path)
    assert [value("cuda_ooms_total", rank) for rank in (0, 1)] == [0, 1]


def test_a_new_attempt_has_one_run_info(tmp_path: Path):
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.START, 0, world=4, age=0.0, hosts=["here"])
    infos = [labels for name, labels, _ in Values(tmp_path).snapshots[0].samples if name == "run_info"]
    assert [labels["world_size"] for labels in infos] == ["4"]


def test_a_number_that_is_not_finite_is_no_number(tmp_path: Path):
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.READY, 0, total_steps=0)
    run.metrics(1, loss=math.nan)
    value = Values(tmp_path)
    found = value("loss", component="total")
    assert found is not None
    assert math.isnan(found)
    assert value("progress_ratio") == 0  # of no steps


def test_a_row_that_cannot_be_counted_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    for _ in range(2):
        run.event(Kind.CORRUPT_SAMPLE, 1)  # without its reasons
    assert caplog.text.count("metrics of rank 0 are out of date ('reasons'); training continues") == 1


@pytest.mark.parametrize(
    ("setting", "initialised", "peak"), [(2.0, False, 2e12), (2.0, True, 2e12), (0.0, False, None), (0.0, True, 989e12)]
)
def test_the_peak_is_the_setting_or_that_of_the_gpu(
    setting: float, initialised: bool, peak: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops(config_of(tmp_path, peak_tflops=setting)) == peak


def test_without_a_peak_there_is_no_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rank_metrics, "peak_flops", lambda config: None)
    run: Any = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.READY, 0, total_steps=20)
    run.metrics(1)
    assert Values(tmp_path)("mfu_ratio") is None
