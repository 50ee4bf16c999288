"""Settings of a resume, checked before the submission, and what a dry run points out."""

from pathlib import Path

import pytest

from motionmae.config import Config, load_config, save_config
from motionmae.errors import UserError
from motionmae.runs.checkpoint_manifest import STATE
from motionmae.runs.checkpoint_store import CheckpointStore
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


@pytest.mark.parametrize("damage", [None, "{", '{"config": 3}', "absent"])
def test_the_newest_checkpoint_that_can_be_read_says_what_must_stay(tmp_path: Path, damage: str | None):
    store = CheckpointStore(RunFolder(config_of(tmp_path).run_folder).checkpoints)
    for step, epochs in ((10, 300), (20, 50)):
        saved = config_of(tmp_path, f"optim.epochs={epochs}").model_dump(mode="json")
        newest = store.commit(store.begin(step), step, {"config": saved}, [])
    if damage == "absent":
        (newest.folder / STATE).unlink()
    elif damage is not None:
        (newest.folder / STATE).write_text(damage)
    kept, other = (300, 50) if damage else (50, 300)
    check_resume(config_of(tmp_path, f"optim.epochs={kept}"))
    with pytest.raises(UserError, match=rf"optim\.epochs={other} \(was {kept}\)"):
        check_resume(config_of(tmp_path, f"optim.epochs={other}"))


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
