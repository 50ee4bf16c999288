"""Settings of a resume, checked before the submission, and what a dry run points out."""

from pathlib import Path

import pytest

from motionmae.config import Config, load_config, save_config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.lease import acquire_lease
from slurm.resume_check import check_resume, differing_settings


def config_of(tmp_path: Path, *changes: str) -> Config:
    return load_config("tiny_toy", [f"output_dir={tmp_path}", f"data.shards={tmp_path}/shards", *changes])


def test_a_running_run_keeps_its_settings(tmp_path: Path):
    config = config_of(tmp_path)
    check_resume(config)  # a new run
    folder = RunFolder(config.run_folder)
    folder.create()
    save_config(config, folder.config)
    acquire_lease(folder.path)
    check_resume(config)
    check_resume(config_of(tmp_path, "engine.micro_batch_size=2", "launch.nodes=3"))  # may change
    with pytest.raises(UserError, match=r"cannot be resumed with optim\.epochs=50 \(was 300\)"):
        check_resume(config_of(tmp_path, "optim.epochs=50"))


def test_the_differences_come_with_both_values(tmp_path: Path):
    config = config_of(tmp_path)
    assert not any("last attempt" in line for line in differing_settings(config))
    folder = RunFolder(config.run_folder)
    folder.create()
    save_config(config, folder.config)
    assert list(differing_settings(config))[-1] == "# no settings differ from the last attempt of this run"
    lines = list(differing_settings(config_of(tmp_path, "log.every_steps=7")))
    assert lines[-2:] == [
        "# 1 setting differs from the last attempt of this run:", "#   log.every_steps  7  (was 20)"
    ]  # fmt: skip
    assert any(line.split() == ["#", "optim.epochs", "300", "(default", "1600)"] for line in lines)
