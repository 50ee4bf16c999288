"""Only exact names are the store's: what else lies in ``checkpoints`` is never read, renamed or deleted."""

import shutil
from pathlib import Path

import pytest

from motionmae.errors import UserError
from motionmae.runs.checkpoint_inspect import inspect, repair
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore, describe
from motionmae.runs.end_reason import StorageError

WEIGHTS = "model-00000-of-00001.safetensors"
FOREIGN = (
    "step-00000100-best-keep", "step-00000500.backup", "step-notes", "step-", "step-00000500 (copy)", "Step-00000500",
    "old-step-00000100", "step-00000100.tar", "step-\u0663\u0663", "damaged-notes", "damaged-step-",
    "damaged-step-1.keep", ".unfinished-thesis", ".unfinished-1-step-00000100.keep", ".unfinished-x-step-00000100",
    ".unfinished-step-", ".step-00000100.replaced.mine", ".step-notes.replaced", "step-00000100\n",
)  # fmt: skip
FOREIGN_FILES = ("step-00000700", "damaged-step-00000700", ".unfinished-1-step-00000700", ".step-00000700.replaced")


def save(store: CheckpointStore, step: int, content: bytes = b"weights" * 100) -> Checkpoint:
    folder = store.begin(step, 1)
    (folder / WEIGHTS).write_bytes(content)
    return store.commit(folder, step, {"trainer": {"data_step": step}}, [describe(folder / WEIGHTS)])


def damage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"damaged")


def newest(store: CheckpointStore) -> int | None:
    found = store.newest_valid(lambda folder, reason: None)
    return found.step if found else None


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def strangers(store: CheckpointStore) -> dict[str, bytes]:
    """Names and contents of what a user has put beside two checkpoints."""
    first = save(store, 100).folder
    save(store, 200)
    for name in FOREIGN:
        shutil.copytree(first, store.folder / name)
        (store.folder / name / "notes.txt").write_text(name)
    for name in FOREIGN_FILES:
        (store.folder / name).write_text(name)
    return contents(store)


def contents(store: CheckpointStore) -> dict[str, bytes]:
    top = {*FOREIGN, *FOREIGN_FILES}
    files = [path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file()]
    return {str(path): (store.folder / path).read_bytes() for path in files if path.parts[0] in top}


def test_foreign_names_stay_and_do_not_count(store: CheckpointStore, strangers: dict[str, bytes]):
    for step in (300, 400, 500):
        save(store, step)
        store.prune(keep_last=2, keep_every=0)
    assert [checkpoint.step for checkpoint in store.complete()] == [400, 500]
    damage(store.folder / "step-00000500")
    store.begin(600, 1)
    assert newest(store) == 400
    store.begin(600, 2)
    inspected = inspect(store, verify=True)
    names = ["step-00000400", "damaged-step-00000500", ".unfinished-1-step-00000600", ".unfinished-2-step-00000600"]
    assert [found.folder.name for found in inspected] == names
    assert [path.name for path in repair(inspected)] == names[1:]
    store.discard_unfinished()
    assert contents(store) == strangers


def test_a_file_with_the_name_of_a_checkpoint_is_not_replaced(store: CheckpointStore, strangers: dict[str, bytes]):
    with pytest.raises(FileExistsError):
        save(store, 700)
    new = store.begin(700, 2)
    with pytest.raises(FileExistsError, match="a file has the name of the checkpoint"):
        store.commit(new, 700, {}, [])
    save(store, 650)
    damage(store.folder / "step-00000650")
    assert newest(store) == 200
    assert contents(store) == strangers


class TestLinks:
    """A checkpoint that was moved to an archive and linked back."""

    @pytest.fixture
    def archived(self, store: CheckpointStore) -> Path:
        for step in (10, 20, 30):
            save(store, step)
        archive = store.folder.parent / "archive"
        folder = store.folder / "step-00000010"
        shutil.move(folder, archive)
        folder.symlink_to(archive)
        return archive

    def test_pruning_removes_only_the_link(self, store: CheckpointStore, archived: Path):
        assert [checkpoint.step for checkpoint in store.complete()] == [10, 20, 30]
        store.prune(keep_last=2, keep_every=0)
        assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000020", "step-00000030"]
        assert (archived / WEIGHTS).exists()

    def test_a_repair_removes_only_the_link(self, store: CheckpointStore, archived: Path):
        damage(archived)
        inspected = inspect(store, verify=True)
        assert [found.link for found in inspected] == ["", "", str(archived)]
        assert [path.name for path in repair(inspected)] == ["step-00000010"]
        assert (archived / WEIGHTS).read_bytes() == b"damaged"

    def test_the_same_step_again_replaces_only_the_link(self, store: CheckpointStore, archived: Path):
        save(store, 10, b"new")
        assert (archived / WEIGHTS).read_bytes() == b"weights" * 100
        assert (store.folder / "step-00000010" / WEIGHTS).read_bytes() == b"new"
        assert len(list(store.folder.iterdir())) == 3

    def test_a_link_to_an_absent_archive_is_not_damage(self, store: CheckpointStore, archived: Path):
        shutil.rmtree(store.folder / "step-00000020")
        shutil.rmtree(store.folder / "step-00000030")
        archived.rename(archived.with_name("unmounted"))
        with pytest.raises(StorageError, match=r"is a link to .*archive, which is absent"):
            newest(store)
        assert repair(inspect(store, verify=True)) == []
        assert (store.folder / "step-00000010").is_symlink()

    def test_a_damaged_link_is_set_aside(self, store: CheckpointStore, archived: Path):
        for step in (20, 30):
            shutil.rmtree(store.folder / f"step-{step:08d}")
        damage(archived)
        with pytest.raises(UserError, match="1 damaged"):
            newest(store)
        assert (store.folder / "damaged-step-00000010").readlink() == archived
        assert (archived / WEIGHTS).exists()


def test_a_file_in_place_of_the_folder_holds_no_checkpoints(tmp_path: Path):
    (tmp_path / "checkpoints").touch()
    assert CheckpointStore(tmp_path / "checkpoints").newest_first() == []
