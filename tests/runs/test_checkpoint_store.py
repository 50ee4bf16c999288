import json
import shutil
from pathlib import Path

import pytest

from motionmae.errors import UserError
from motionmae.runs.best_checkpoint import Best, best_in
from motionmae.runs.checkpoint_inspect import inspect
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore, describe, read_manifest
from motionmae.runs.end_reason import StorageError


def save(store: CheckpointStore, step: int, content: bytes = b"weights" * 1000) -> Checkpoint:
    folder = store.begin(step)
    path = folder / "model-00000-of-00001.safetensors"
    path.write_bytes(content)
    return store.commit(folder, step, {"step": step}, [describe(path, ("a.weight",))])


def newest(store: CheckpointStore) -> tuple[int | None, list[tuple[str, str]]]:
    reports: list[tuple[str, str]] = []
    found = store.newest_valid(lambda folder, reason: reports.append((folder.name, reason)))
    return (found.step if found else None), reports


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def test_what_is_committed_is_found_intact(store: CheckpointStore):
    written = save(store, 40)
    save(store, 50)
    assert newest(store) == (50, [])
    assert [c.step for c in store.complete()] == [40, 50]
    first = store.complete()[0]
    assert first == written
    assert first.state() == {"step": 40}
    assert first.bytes == 7000 + (first.folder / "state.json").stat().st_size
    assert first.files[1].tensors == ("a.weight",)


def test_a_new_run_has_none(store: CheckpointStore):
    assert newest(store) == (None, [])


def flip_byte(folder: Path) -> None:
    path = folder / "model-00000-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[3456] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "model-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove_file(folder: Path) -> None:
    (folder / "model-00000-of-00001.safetensors").unlink()


def change_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 60}')


def tear_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_byte, "sha256"),
        (truncate, "has 6999 bytes, its manifest says 7000"),
        (remove_file, "No such file"),
        (change_state, "state.json"),
        (tear_manifest, "manifest.json is not readable"),
        (remove_manifest, "manifest.json: No such file"),
        (empty_manifest, "manifest.json is not readable"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(store: CheckpointStore, harm, reason: str):
    save(store, 40)
    save(store, 47)
    harm(store.folder / "step-00000047")
    found, reports = newest(store)
    assert found == 40
    ((name, why),) = reports
    assert name == "step-00000047"
    assert reason in why
    assert newest(store) == (40, [])  # it is out of the way now
    assert (store.folder / "damaged-step-00000047").is_dir()
    save(store, 47)
    assert newest(store) == (47, [])


def test_all_damaged_is_refused_again_and_again(store: CheckpointStore):
    for step in (40, 50):
        flip_byte(save(store, step).folder)
    for _ in range(2):
        with pytest.raises(UserError, match="2 damaged"):
            newest(store)


def test_an_unfinished_save_is_no_checkpoint_and_is_removed(store: CheckpointStore):
    save(store, 40)
    folder = store.begin(50)
    (folder / "model-00000-of-00001.safetensors").write_bytes(b"half")
    assert newest(store) == (40, [])
    store.discard_unfinished()
    assert not folder.exists()
    (store.begin(50) / "rest").write_bytes(b"of another attempt")
    assert list(store.begin(50).iterdir()) == []


def test_the_same_step_again_replaces_the_former(store: CheckpointStore):
    save(store, 40, b"old")
    save(store, 40, b"new")
    (found,) = store.complete()
    assert (found.folder / found.files[1].name).read_bytes() == b"new"
    assert newest(store) == (40, [])


def test_pruning_keeps_the_best_and_the_newest_checkpoint_says_which_that_is(store: CheckpointStore):
    for step in range(10, 60, 10):
        save(store, step)
    assert best_in(store) is None
    folder = store.begin(60)
    best = {"step": 20, "metric": "top1", "value": 82.5}
    store.commit(folder, 60, {"trainer": {"data_step": 60, "validation": {"best": best}}}, [])
    store.prune(keep_last=2, keep_every=0, best=20)
    assert [c.step for c in store.complete()] == [20, 50, 60]
    assert best_in(store) == Best(**best)
    assert [(found.step, found.best) for found in inspect(store, verify=False)] == [
        (60, ""),
        (50, ""),
        (20, "top1 82.5"),
    ]
    shutil.rmtree(store.complete()[0].folder)
    assert best_in(store) is None


def test_pruning_keeps_the_newest_and_the_multiples(store: CheckpointStore):
    for step in range(10, 100, 10):
        save(store, step)
    store.prune(keep_last=3, keep_every=40)
    assert [c.step for c in store.complete()] == [40, 70, 80, 90]
    store.prune(keep_last=1, keep_every=0)
    assert [c.step for c in store.complete()] == [80, 90]
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000080", "step-00000090"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model-00000-of-00001.safetensors"])
def test_storage_that_fails_is_not_damage(store: CheckpointStore, name: str):
    """A link to itself cannot be read: the error is the file system's own."""
    save(store, 40)
    path = save(store, 50).folder / name
    intact = path.rename(path.with_name("intact"))
    path.symlink_to(path.name)
    for _ in range(2):
        with pytest.raises(StorageError, match=f"{path.parent} cannot be read .*symbolic links.* nothing was changed"):
            newest(store)
    assert store.complete()[0].step == 40
    intact.replace(path)
    assert newest(store) == (50, [])


def test_a_damaged_checkpoint_does_not_count_as_kept(store: CheckpointStore):
    for step in (10, 20, 30):
        save(store, step)
    flip_byte(store.folder / "step-00000030")
    assert newest(store)[0] == 20
    save(store, 25)
    store.prune(keep_last=2, keep_every=0)
    assert [c.step for c in store.complete()] == [20, 25]


def test_another_format_version_is_refused(store: CheckpointStore):
    folder = save(store, 10).folder
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        read_manifest(folder)
    with pytest.raises(UserError, match="format 99"):
        newest(store)
    assert folder.exists()


def test_a_rollback_takes_an_earlier_checkpoint_or_the_oldest(store: CheckpointStore):
    for step in (10, 20, 30):
        save(store, step)
    for before, expected in ((30, 20), (20, 10), (5, 10)):
        found = store.newest_valid(lambda folder, reason: None, before)
        assert found is not None
        assert found.step == expected


def test_the_newest_is_the_last_saved_even_after_a_rollback(store: CheckpointStore):
    for step, data_step in ((10, 10), (20, 20), (30, 30), (10, 35), (12, 37)):
        store.commit(store.begin(step), step, {"trainer": {"data_step": data_step}}, [])
    assert [c.step for c in store.complete()] == [20, 30, 10, 12]
    assert newest(store) == (12, [])
    store.prune(keep_last=2, keep_every=0)
    assert [c.step for c in store.complete()] == [10, 12]
