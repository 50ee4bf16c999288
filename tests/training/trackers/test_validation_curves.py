"""Figures of validation as curves in TensorBoard, W&B, MLflow and Trackio, read back with each tool's own reader."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.config import Config
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, read_rows
from tests.training.launch import run_ranks
from tests.training.run_workers import run_all
from tests.training.shards import STEPS, make_shards, tiny_run
from tests.training.trackers.readers import READERS, Rows

FIGURES = {
    "finetune": ("loss", "top1", "top5"),
    "pretrain": ("loss", "loss_space", "loss_time", "explained_space", "explained_time"),
}


def tensorboard_rows(config: Config, key: str) -> Rows:
    reader = EventAccumulator(str(RunFolder(config.run_folder).tensorboard))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars(key)]


@pytest.mark.parametrize("task", FIGURES)
def test_each_tool_has_a_curve_of_each_figure(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    val = make_shards(tmp_path / "val", shards=1, samples=7, classes=3)
    log = {"tensorboard": True, "wandb": "offline", "mlflow": True, "trackio": True}
    config = tiny_run(make_shards(tmp_path / "train", classes=3), tmp_path / "runs", log=log)
    changes = {"finetune.mixup": 0.0, "finetune.cutmix": 0.0} if task == "finetune" else {}
    config = config.updated({"task": task, "validation.shards": str(val), "validation.every_steps": 4, **changes})
    assert run_ranks(1, run_all, [config])[0] == ["FINISHED"]
    measured = [row for row in read_rows(RunFolder(config.run_folder).events) if row["kind"] == Kind.VALIDATION]
    assert [row["step"] for row in measured] == [4, 8, STEPS]
    for figure in FIGURES[task]:
        expected = [(row["step"], pytest.approx(row[figure], rel=1e-6)) for row in measured]
        for name, read in {"tensorboard": tensorboard_rows, **READERS}.items():
            assert sorted(read(config, f"val_{figure}")) == expected, (name, figure)
