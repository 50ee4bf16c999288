"""Runs in W&B, MLflow and Trackio after kills and resumes, read back with each tool's own reader."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from motionmae.config import Config, LogConfig
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, JsonLines
from motionmae.training.trackers.base import open_tracker
from motionmae.training.trackers.wandb_run import WeightsAndBiases
from tests.monitoring.runs import ROOT, metrics_row
from tests.training.trackers.attempt import OPENERS
from tests.training.trackers.readers import READERS, Rows, wandb_files, wandb_records, wandb_values


def config_of(folder: Path) -> Config:
    return Config(name="shown", output_dir=str(folder / "runs"), log=LogConfig(wandb="offline", wandb_project="videos"))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def attempt(config: Config, tool: str, resumed_step: int, last_step: int, *kill: str) -> None:
    command = [sys.executable, "-m", "tests.training.trackers.attempt", config.model_dump_json(), tool]
    done = subprocess.run(
        [*command, str(resumed_step), str(last_step), *kill], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
    assert (done.stdout, "INFO" in done.stderr) == ("", False)  # the tools say nothing


def expected(last: int) -> Rows:
    return [(step, pytest.approx(2 / step)) for step in range(1, last + 1)]


@pytest.mark.parametrize("tool", READERS)
def test_a_tool_shows_each_step_once_after_a_late_start_a_kill_and_a_resume(tool: str, tmp_path: Path):
    config = config_of(tmp_path)
    folder = RunFolder(config.run_folder)
    folder.create()
    draw(folder.path / "picture.png")
    events = EventLog("first", [JsonLines(folder.events, folder.metrics)])
    for step in (1, 2, 3):  # an attempt without the tool, which saved at step 2
        events.metrics(metrics_row(step))
    attempt(config, tool, 2, 10, "kill")
    assert sorted(READERS[tool](config))[:9] == expected(9)  # at most the last row is lost
    attempt(config, tool, 8, 12)  # from a checkpoint that is older than the kill
    assert sorted(READERS[tool](config)) == expected(12)
    assert json.loads(folder.trackers.read_text()).keys() == {tool}
    check_details[tool](config, tmp_path)


def draw(path: Path) -> None:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def check_wandb(config: Config, tmp_path: Path) -> None:
    first, _ = wandb_files(config)
    runs = [record.run for record in wandb_records(first) if record.HasField("run")]
    run_id = json.loads((config.run_folder / "trackers.json").read_text())["wandb"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {(run_id, "videos", "shown")}
    (shown,) = (row for row in wandb_values(config) if any(key.startswith("reconstruction") for key in row))
    assert shown["_step"] == 5  # with the row that followed the picture
    assert "step 3" in str(shown)
    assert len(list(tmp_path.glob("runs/shown/wandb/offline-run-*/files/media/images/*.png"))) == 1


def check_mlflow(config: Config, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.output_dir}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("motionmae").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "shown")
    assert run.data.params["optim.global_batch_size"] == "1024"
    assert len(list(tmp_path.glob("runs/mlartifacts/*/artifacts/reconstruction/picture.png"))) == 1


def check_trackio(config: Config, tmp_path: Path) -> None:
    assert len(list(tmp_path.glob("trackio/media/**/*.png"))) == 1


check_details = {"wandb": check_wandb, "mlflow": check_mlflow, "trackio": check_trackio}


def test_a_server_that_does_not_answer_stops_a_new_run_and_no_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:1")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = config_of(tmp_path)
    folder = RunFolder(config.run_folder)
    folder.create()
    with pytest.raises(UserError, match=r"log.mlflow could not start .*turn it off") as refused:
        open_tracker("mlflow", OPENERS["mlflow"], config, folder, 0)
    assert open_tracker("mlflow", OPENERS["mlflow"], config, folder, 5) is None
    assert "training continues without it" in caplog.text
    assert "secret" not in caplog.text + str(refused.value)


def test_wandb_without_a_key_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = config_of(tmp_path).updated({"log": LogConfig(wandb="online")})
    with pytest.raises(UserError, match=r"log.wandb=online .*set log.wandb=offline"):
        WeightsAndBiases(config, RunFolder(tmp_path), "")


@pytest.mark.parametrize(
    ("tool", "package"),
    [("wandb", "log.wandb=offline"), ("mlflow", "log.mlflow=true"), ("trackio", "log.trackio=true")],
)
def test_a_package_that_is_not_installed(tool: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, tool, None)
    with pytest.raises(UserError, match=f"{package} needs {tool}: pip install"):
        OPENERS[tool](config_of(tmp_path), RunFolder(tmp_path), "")
