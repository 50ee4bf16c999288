import os
import shutil
from pathlib import Path

import pytest

from tests.fault_injection import Operation, kill_points, operations


def replace_and_delete(folder: Path) -> None:
    with (folder / "new").open("w") as file:
        file.write("new")
        os.fsync(file)
    (folder / "new").replace(folder / "old")
    (folder / "old").read_text()
    shutil.rmtree(folder / "sub")


def fail(folder: Path) -> None:
    raise RuntimeError("a fault of the action itself")


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    folder = tmp_path / "seed"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").touch()
    (folder / "old").write_text("old")
    return folder


OPERATIONS = [
    Operation("open", "new"),
    Operation("fsync", "new"),
    Operation("rename", "new", "old"),
    Operation("remove", "sub/file"),
    Operation("rmdir", "sub"),
]


def test_operations_are_recorded_in_order(seed: Path, tmp_path: Path):
    assert operations(replace_and_delete, seed, tmp_path / "work") == OPERATIONS


def test_each_operation_is_a_kill_point(seed: Path, tmp_path: Path):
    kills = list(kill_points(replace_and_delete, seed, tmp_path / "work"))
    assert [kill.next for kill in kills] == [*OPERATIONS, None]
    assert [(kill.folder / "old").read_text() for kill in kills] == ["old"] * 3 + ["new"] * 3
    assert [(kill.folder / "sub").exists() for kill in kills] == [True] * 5 + [False]
    assert kills[2].done == OPERATIONS[:2]
    assert (seed / "sub/file").exists()


def test_a_fault_of_the_action_is_shown(seed: Path, tmp_path: Path):
    with pytest.raises(AssertionError, match="a fault of the action itself"):
        list(kill_points(fail, seed, tmp_path / "work"))
