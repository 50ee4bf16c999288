"""A shard that is written or replaced, killed before each file system operation."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.format import META_KEYS, ShardEntry, ShardWriter, check_size, load_index
from tests.fault_injection import kill_points, operations
from tests.flushes import record

NAME = "train-000000.tar"


def write(folder: Path, frames: int, byte: bytes = b"j") -> ShardEntry:
    meta: dict[str, Any] = dict.fromkeys(META_KEYS, 1) | {"frames": frames, "times": [0.0] * frames, "source": "v.mp4"}
    with ShardWriter(folder / NAME) as shard:
        shard.write("00000000", [byte * 50] * frames, meta)
    assert shard.entry
    return shard.entry


def write_longer(folder: Path) -> None:
    write(folder, 9)


def write_other_bytes(folder: Path) -> None:
    """The tar keeps its size, and only the checksums tell both apart."""
    write(folder, 3, b"n")


def found(folder: Path) -> ShardEntry | None:
    """Return the entry of the shard as a reader finds it, after a check that index and tar belong together."""
    try:
        entry, _ = load_index(folder / NAME)
    except CorruptSample:
        return None
    check_size(folder / NAME, entry)
    assert hashlib.sha256((folder / NAME).read_bytes()).hexdigest() == entry.sha256
    return entry


@pytest.mark.parametrize("action", [write_longer, write_other_bytes])
@pytest.mark.parametrize("has_old", [False, True])
def test_old_or_new_is_found(tmp_path: Path, action, has_old: bool):
    (tmp_path / "seed").mkdir()
    old = write(tmp_path / "seed", 3) if has_old else None
    outcomes = []
    for kill in kill_points(action, tmp_path / "seed", tmp_path / "work"):
        outcomes.append(found(kill.folder))
        action(kill.folder)
        names = sorted(path.name for path in kill.folder.iterdir())
        assert names == ["train-000000.idx.json", NAME], (kill, names)
        assert found(kill.folder) not in (None, old), kill
    new = outcomes[-1]
    assert new not in (None, old)
    change = outcomes.index(new)
    assert outcomes == [old] * change + [new] * (len(outcomes) - change)
    assert 0 < change < len(outcomes) - 1


def test_a_shard_killed_in_the_middle_is_completed_by_a_kill_of_the_next_write(tmp_path: Path):
    """Kills one after another: the new shard of the first stays until the second has one."""
    (tmp_path / "seed").mkdir()
    old = write(tmp_path / "seed", 3)
    halfway = next(
        kill for kill in kill_points(write_longer, tmp_path / "seed", tmp_path / "first") if found(kill.folder) != old
    )
    middle = found(halfway.folder)
    outcomes = [found(kill.folder) for kill in kill_points(write_other_bytes, halfway.folder, tmp_path / "second")]
    assert set(outcomes) == {middle, outcomes[-1]}
    assert None not in outcomes


def test_the_tar_and_its_index_are_flushed_before_their_renames(tmp_path: Path):
    done = operations(write_longer, tmp_path / "absent", tmp_path / "work")
    steps = [(one.name, one.target or one.path) for one in done if one.name in ("fsync", "rename")]
    tar, index = steps.index(("rename", NAME)), steps.index(("rename", "train-000000.idx.json"))
    assert steps.index(("fsync", f"{NAME}.tmp")) < steps.index(("rename", ".train-000000.idx.json.new")) < tar < index
    assert ("fsync", ".") in steps[tar:index]
    assert steps[-1] == ("fsync", ".")


def test_the_same_flushes_within_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fast, so that it runs with every change: the tar, the index, both names, each with its folder."""
    done = record(tmp_path, monkeypatch)
    write(tmp_path, 3)
    assert ("fsync", f"{NAME}.tmp") in done
    tar, index = done.index(("rename", NAME)), done.index(("rename", "train-000000.idx.json"))
    assert done.index(("fsync", f"{NAME}.tmp")) < done.index(("rename", ".train-000000.idx.json.new")) < tar < index
    assert ("fsync", ".") in done[tar:index]
    assert done[-1] == ("fsync", ".")


def test_a_link_of_the_temporary_name_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / f"{NAME}.tmp").symlink_to(tmp_path / "mine")
    write(tmp_path, 3)
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not (tmp_path / NAME).is_symlink()
