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


def test_each_tool_has_a_curve_of_each_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    configs = {task: validated(task, tmp_path / task) for task in FIGURES}
    assert run_ranks(1, run_all, list(configs.values()), variables)[0] == ["FINISHED"] * 2
    for task, config in configs.items():
        rows = [row for row in read_rows(RunFolder(config.run_folder).events) if row["kind"] == Kind.VALIDATION]
        assert [row["step"] for row in rows] == [4, 8, STEPS]
        for figure in FIGURES[task]:
            expected = [(row["step"], pytest.approx(row[figure], rel=1e-6)) for row in rows]
            for name, read in {"tensorboard": tensorboard_rows, **READERS}.items():
                assert sorted(read(config, f"val_{figure}")) == expected, (task, name, figure)


def validated(task: str, folder: Path) -> Config:
    """A run that validates after 4, 8 and 9 steps, and tells all tools."""
    train, val = make_shards(folder / "train", classes=3), make_shards(folder / "val", shards=1, samples=7, classes=3)
    log = {"tensorboard": True, "wandb": "offline", "mlflow": True, "trackio": True}
    config = tiny_run(train, folder / "runs", log=log, validation={"shards": str(val), "every_steps": 4})
    changes = {"finetune.mixup": 0.0, "finetune.cutmix": 0.0} if task == "finetune" else {}
    return config.updated({"task": task, "name": f"tiny-{task}", **changes})
