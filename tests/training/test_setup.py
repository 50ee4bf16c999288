"""What a run prints at its start."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from motionmae.config import config_yaml, load_config, save_config
from motionmae.runs.directory import RunFolder
from motionmae.training.callbacks.base import ProgressLine
from motionmae.training.setup import log_settings
from tests.training.shards import make_shards, tiny_run


def test_a_new_run_prints_the_settings_that_are_not_the_defaults(tmp_path: Path):
    config = tiny_run(
        make_shards(tmp_path / "shards", samples=3), tmp_path / "runs", optim={"epochs": 1, "warmup_epochs": 0}
    )
    (tmp_path / "mine.yaml").write_text(config_yaml(config))
    command = [sys.executable, "-m", "motionmae", "pretrain", "--config", str(tmp_path / "mine.yaml")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    settings = {key: values for key, *values in (re.split("  +", line.strip()) for line in printed if line[:2] == "  ")}
    assert settings["clip.size"] == ["32", "(default 224)"]
    assert settings["optim.epochs"] == ["1", "(default 1600)"]
    assert printed[0] == f"{len(settings)} settings differ from the defaults:"
    assert printed[len(settings) + 1] == f"all settings: {config.run_folder}/config.yaml"
    assert load_config(f"{config.run_folder}/config.yaml") == config
    assert " starts: " in printed[len(settings) + 2]


def test_a_resumed_run_prints_only_the_settings_that_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tiny_run(tmp_path / "shards", tmp_path)
    folder, progress = RunFolder(config.run_folder), ProgressLine(total_steps=9, enabled=True)
    folder.create()
    save_config(config, folder.config)
    log_settings(config, folder, progress)
    assert capsys.readouterr().out == ""
    log_settings(config.updated({"log.every_steps": 7}), folder, progress)
    assert capsys.readouterr().out.splitlines() == [
        "1 setting differs from the last attempt of this run:",
        "  log.every_steps  7  (was 1)",
        f"all settings: {folder.config}",
    ]
