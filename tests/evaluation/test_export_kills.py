"""An export into a folder that holds an older export, killed before each file system operation."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from motionmae.errors import UserError
from motionmae.evaluation import export_folder
from motionmae.evaluation.export_folder import FACTS, write_export
from motionmae.files import write_atomically
from tests.fault_injection import kill_points, operations

NOTES = "notes of the user"


def write(folder: Path, value: int) -> None:
    weights = save({"encoder.project.weight": np.full(2, value, np.float32)}, {"format": "pt"})
    texts = {name: f'{{"value": {value}}}'.encode() for name in ("config.json", "preprocessor_config.json")}
    contents = {"model.safetensors": weights, **texts, "README.md": f"card {value}".encode()}
    write_export(folder / "export", {"step": value}, contents)


def write_new(folder: Path) -> None:
    write(folder, 2)


def weights_found(folder: Path) -> int:
    from motionmae.checkpointing.load_weights import load_state  # imports torch, which the killed processes do not need

    (value,) = set(load_state(folder / "export").state["encoder.project.weight"].tolist())
    return int(value)


@pytest.mark.slow
def test_old_or_new_is_found_and_the_next_export_cleans_up(tmp_path: Path):
    write(tmp_path / "seed", 1)
    (tmp_path / "seed/export/notes.txt").write_text(NOTES)
    outcomes = []
    for kill in kill_points(write_new, tmp_path / "seed", tmp_path / "work"):
        outcomes.append(weights_found(kill.folder))
        export = kill.folder / "export"
        for path in export.glob("*.json"):
            json.loads(path.read_text())
        write_new(kill.folder)
        assert weights_found(kill.folder) == 2, kill
        assert sorted(path.name for path in export.iterdir()) == [
            "README.md", "config.json", "model.safetensors", "motionmae.json", "notes.txt", "preprocessor_config.json"
        ], kill  # fmt: skip
        assert (export / "notes.txt").read_text() == NOTES, kill
    change = outcomes.index(2)
    assert outcomes == [1] * change + [2] * (len(outcomes) - change)
    assert 0 < change < len(outcomes) - 1


def test_every_file_is_flushed_before_its_rename(tmp_path: Path):
    done = operations(write_new, tmp_path / "absent", tmp_path / "work")
    flushed = {one.path for one in done if one.name == "fsync"}
    renames = [one for one in done if one.name == "rename"]
    assert {Path(one.target).name for one in renames} >= {"model.safetensors", FACTS, "config.json", "README.md"}
    assert all(one.path in flushed for one in renames)
    assert done[-1].name == "fsync"


def test_an_export_replaces_what_another_left_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_until_full(path: Path, content: bytes) -> None:
        if path.name == "config.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(path, content)

    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(export_folder, "write_atomically", write_until_full)
        with pytest.raises(UserError, match="No space left on device"):
            write(tmp_path, 2)
    assert weights_found(tmp_path) == 2
    assert json.loads((tmp_path / "export/config.json").read_text()) == {"value": 1}
    write(tmp_path, 3)
    assert weights_found(tmp_path) == 3
    assert json.loads((tmp_path / "export/config.json").read_text()) == {"value": 3}
