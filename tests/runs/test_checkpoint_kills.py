"""A save, a replacement, a deletion and a rename of checkpoints, killed before each file system operation."""

from pathlib import Path

import pytest

from motionmae.files import sync
from motionmae.runs.checkpoint_store import CheckpointStore, describe
from tests.fault_injection import Action, kill_points, operations

WEIGHTS = "model-00000-of-00001.safetensors"


def save(folder: Path, step: int, position: int, content: bytes) -> None:
    store = CheckpointStore(folder)
    new = store.begin(step, 1)
    (new / WEIGHTS).write_bytes(content)
    sync(new / WEIGHTS)
    store.commit(new, step, {"trainer": {"data_step": position}}, [describe(new / WEIGHTS)])


def save_first(folder: Path) -> None:
    save(folder, 10, 10, b"new")


def save_next(folder: Path) -> None:
    save(folder, 20, 20, b"new")


def save_again(folder: Path) -> None:
    save(folder, 10, 15, b"new")


def prune(folder: Path) -> None:
    CheckpointStore(folder).prune(keep_last=2, keep_every=0)


def set_damaged_aside(folder: Path) -> None:
    found = CheckpointStore(folder).newest_valid(lambda path, reason: None)
    assert found is not None


def weights_found(folder: Path) -> list[bytes]:
    """Return the weights of the complete checkpoints in the order of saving. All must be intact."""
    complete = CheckpointStore(folder).complete()
    assert [checkpoint.defect() for checkpoint in complete] == [""] * len(complete)
    return [(checkpoint.folder / WEIGHTS).read_bytes() for checkpoint in complete]


CASES = {
    "the first save": (save_first, (), [[], [b"new"]]),
    "a save": (save_next, (10,), [[b"10"], [b"10", b"new"]]),
    "the same step again": (save_again, (10,), [[b"10"], [b"new"]]),
    "the same step of several": (save_again, (10, 12), [[b"10", b"12"], [b"12", b"new"]]),
    "pruning": (prune, (10, 20, 30), [[b"10", b"20", b"30"], [b"20", b"30"]]),
}


@pytest.mark.parametrize(("action", "steps", "allowed"), CASES.values(), ids=CASES)
def test_old_or_new_is_found(tmp_path: Path, action: Action, steps: tuple[int, ...], allowed: list[list[bytes]]):
    """A reader that changes nothing finds it, and so does the next start, which cleans up."""
    (tmp_path / "seed").mkdir()
    for step in steps:
        save(tmp_path / "seed", step, step, str(step).encode())
    outcomes = []
    for kill in kill_points(action, tmp_path / "seed", tmp_path / "work"):
        found = weights_found(kill.folder)
        assert found in allowed, kill
        outcomes.append(found)
        CheckpointStore(kill.folder).discard_unfinished()
        assert weights_found(kill.folder) == found, kill
        names = [path.name for path in kill.folder.iterdir()]
        assert all(name.startswith("step-") for name in names), (kill, names)
        action(kill.folder)
        assert weights_found(kill.folder) == allowed[1], kill
    assert outcomes[0] == allowed[0]
    assert outcomes[-1] == allowed[1]


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path):
    for step in (10, 20):
        save(tmp_path / "seed", step, step, b"intact")
    (tmp_path / "seed/damaged-step-00000020/old").mkdir(parents=True)
    (tmp_path / "seed/step-00000020" / WEIGHTS).write_bytes(b"broken")
    for kill in kill_points(set_damaged_aside, tmp_path / "seed", tmp_path / "work"):
        found = CheckpointStore(kill.folder).newest_valid(lambda path, reason: None)
        assert found is not None, kill
        assert found.step == 10, kill
        assert sorted(path.name for path in kill.folder.iterdir()) == ["damaged-step-00000020", "step-00000010"], kill


def test_everything_is_flushed_before_the_rename_and_the_folder_after(tmp_path: Path):
    found = operations(save_first, tmp_path / "absent", tmp_path / "work")
    (rename,) = [number for number, one in enumerate(found) if one.target == "step-00000010"]
    flushed = [one.path for one in found[:rename] if one.name == "fsync"]
    for name in (WEIGHTS, "state.json", "manifest.json"):
        assert any(name in path for path in flushed), name
    assert flushed[-1] == found[rename].path  # the folder that holds them
    assert [one.path for one in found[rename:] if one.name == "fsync"] == ["."]
