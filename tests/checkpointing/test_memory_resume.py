"""Which state a resume takes from memory, and which rank reads which file of it, without ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from motionmae.checkpointing.memory_resume import (
    MemoryCheckpoint,
    _assemble,
    _counts,
    _Disk,
    _Holding,
    _Key,
    newest_position,
)
from motionmae.errors import UserError
from motionmae.runs.checkpoint_manifest import FileEntry
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.memory_folder import MemoryFolder, Share

HASH = "0" * 64


def share(rank: int, world: int) -> Share:
    names = [f"model-{rank}", f"optimizer-{rank}"]
    files = tuple(FileEntry(name, 10 + rank, HASH) for name in names)
    return Share(attempt=3, position=12, step=10, rank=rank, world=world, base=None, files=files)


def holding(rank: int, world: int, defect: str = "") -> _Holding:
    return _Holding(share(rank, world), b"{}" if rank == 0 and not defect else b"", defect)


def assemble(holdings: list[list[_Holding]], world: int) -> MemoryCheckpoint | None:
    return _assemble(MemoryFolder(Path("/dev/shm/x")), _Key(12, 3, world), "step-00000008", holdings)


def test_shares_are_read_where_they_are_intact_and_the_work_is_divided():
    two = [[holding(0, 3), holding(1, 3), holding(2, 3)]] * 2  # both ranks hold all shares
    found = assemble(two, 3)
    assert found is not None
    assert found.readers == {
        "model-0": 0, "optimizer-0": 0, "model-1": 1, "optimizer-1": 1, "model-2": 0, "optimizer-2": 0,
    }  # fmt: skip
    assert [found.reader(number, "model-1", 2) for number in range(3)] == [1, 1, 1]
    assert (found.step, found.position, found.base, found.on_disk) == (10, 12, "step-00000008", "step-00000008")
    assert [entry.name for entry in found.files] == list(found.readers)
    assert found.folder.name == "position-00000012-attempt-3"
    assert found.content == b"{}"
    assert found.source == "memory"


def test_a_damaged_share_is_read_elsewhere_and_one_that_is_nowhere_intact_is_lost():
    found = assemble([[holding(0, 2, "flipped"), holding(1, 2)], [holding(0, 2), holding(1, 2, "short")]], 2)
    assert found is not None
    assert (found.readers["model-0"], found.readers["model-1"], found.content) == (1, 0, b"{}")
    assert assemble([[holding(0, 2), holding(1, 2, "flipped")], [holding(0, 2)]], 2) is None
    assert assemble([[holding(1, 2)]], 2) is None


@pytest.mark.parametrize(
    ("base", "position", "passed", "counts"),
    [
        (None, 8, False, True),
        (None, 7, False, False),
        ("step-00000008", 9, False, True),
        ("step-00000006", 9, False, False),
        (None, 9, True, False),
        ("step-00000008", 9, True, False),
    ],
)
def test_a_state_counts_with_its_checkpoint_and_no_older_than_the_disk(
    base: str | None, position: int, passed: bool, counts: bool
):
    asked: list[Any] = []

    def has_passed(attempt: int, at: int) -> bool:
        asked.append((attempt, at))
        return passed

    disk = _Disk(8, frozenset({"step-00000008"}))
    lease: Any = SimpleNamespace(has_passed=has_passed)
    assert _counts(_Key(position, 3, 1), base, disk, lease) is counts
    assert asked in ([], [(3, position)])


def test_the_position_of_the_newest_checkpoint_is_the_highest(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    assert newest_position(store) == 0
    for step, position in ((4, 4), (6, 6), (5, 9)):  # after a rollback a lower step is at a higher position
        store.commit(store.begin(step), step, {"trainer": {"data_step": position}}, [])
    assert newest_position(store) == 9


def test_a_later_state_is_newer_whatever_its_attempt_and_then_the_later_attempt():
    keys = [_Key(7, 9, 4), _Key(12, 2, 1), _Key(12, 3, 1), _Key(9, 4, 8)]
    assert sorted(keys)[-1] == _Key(12, 3, 1)
    assert sorted(keys)[0] == _Key(7, 9, 4)


def test_a_damaged_state_is_one_sentence():
    found = assemble([[holding(0, 1)]], 1)
    assert found is not None
    assert found.state() == {}
    broken = MemoryCheckpoint(found.folder, 1, (), 1, None, b"{", {})
    with pytest.raises(UserError, match=r"the memory copy .*position-00000012-attempt-3 is damaged \(.*delete it on"):
        broken.state()
