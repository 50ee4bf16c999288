"""The folder of memory copies on a node: privacy, identity, leftovers. A folder takes the place of /dev/shm."""

import os
import shutil
from pathlib import Path

import pytest

from motionmae.runs import memory_folder
from motionmae.runs.checkpoint_manifest import FileEntry, describe
from motionmae.runs.memory_folder import MemoryFolder, Share, remove_abandoned


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "shm"
    root.mkdir(mode=0o777)
    root.chmod(0o1777)
    monkeypatch.setattr(memory_folder, "ROOT", root)
    return root


def add(folder: MemoryFolder, position: int, attempt: int = 1) -> Share:
    state = folder.begin(attempt, position)
    (state / "model-00000-of-00001.safetensors").write_bytes(b"weights")
    entry = describe(state / "model-00000-of-00001.safetensors", ("a",))
    share = Share(attempt=attempt, position=position, step=position, rank=0, world=1, base=None, files=(entry,))
    folder.commit(share)
    return share


def own(run: str = "/runs/a", identity: str = "first") -> MemoryFolder:
    return memory_folder.memory_folder(Path(run), identity)


def test_a_share_is_read_back_and_its_damage_found(root: Path):
    folder = own()
    share = add(folder, 12)
    assert list(folder.shares()) == [share]
    assert folder.defect(share) == ""
    (file,) = root.rglob("model-*")
    file.write_bytes(b"weightz")
    assert folder.defect(share) == "model-00000-of-00001.safetensors does not have the sha256 of its manifest"
    file.unlink()
    assert "No such file" in folder.defect(share)


def test_only_the_user_can_open_the_copies(root: Path):
    folder = own()
    add(folder, 12)
    assert list(root.iterdir()) == [folder.path.parent] == [root / f"motionmae-{os.geteuid()}"]
    assert folder.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["link", "open", "file", "other owner"])
def test_a_folder_that_another_user_laid_out_is_not_used(root: Path, tmp_path: Path, trap: str):
    folder = own()
    add(folder, 12)
    name = folder.path.parent
    if trap == "link":
        elsewhere = tmp_path / "elsewhere"
        name.rename(elsewhere)
        name.symlink_to(elsewhere)
    elif trap == "open":
        name.chmod(0o755)
    elif trap == "other owner":
        os.chown(name, 12345, -1)
    else:
        name.rename(tmp_path / "elsewhere")
        name.write_text("")
    assert list(folder.shares()) == []
    with pytest.raises(OSError, match="is not a folder of this user that is closed to others"):
        folder.begin(1, 13)
    folder.remove()
    remains = [path for top in (root, tmp_path / "elsewhere") for path in top.rglob("model-*")]
    assert len(remains) == 1, "something was deleted through it"


def test_copies_belong_to_one_run(root: Path):
    """Another run folder, a copied run folder, and a new run of the same name have copies of their own."""
    add(own(), 12)
    for other in (own("/runs/b"), own("/elsewhere/a"), own(identity="second")):
        assert list(other.shares()) == []
        add(other, 3)
    assert [share.position for share in own().shares()] == [12]
    own().remove()
    assert [share.position for share in own("/runs/b").shares()] == [3]


def test_a_new_state_replaces_those_of_this_and_older_attempts(root: Path):
    folder = own()
    for position, attempt in ((5, 1), (6, 1), (6, 2), (7, 2), (4, 3)):
        add(folder, position, attempt)
    folder.remove_others(2, 7)
    assert [(share.position, share.attempt) for share in folder.shares()] == [(4, 3), (7, 2)]


def test_an_unfinished_or_renamed_state_is_no_share(root: Path):
    folder = own()
    add(folder, 5)
    folder.begin(1, 6)
    folder.state_folder(1, 5).rename(folder.state_folder(1, 50))
    (folder.state_folder(1, 6) / "share-00000-of-00001.json").write_text("{")
    assert list(folder.shares()) == []


def test_copies_that_nobody_has_written_for_a_day_are_deleted(root: Path):
    for run in ("/runs/old", "/runs/recent", "/runs/own"):
        add(own(run), 1)
    (root / f"motionmae-{os.geteuid()}" / "mine").mkdir()
    later = root.stat().st_mtime + 90_000
    os.utime(own("/runs/recent").state_folder(1, 1), (later, later))
    remove_abandoned(own("/runs/own"), now=later)
    left = sorted(path.name[:6] for path in (root / f"motionmae-{os.geteuid()}").iterdir())
    assert left == ["mine", "own-" + left[1][4:], "recent"]


def test_names_say_position_attempt_and_rank(root: Path):
    folder = own()
    assert folder.path.name.startswith("a-")
    assert len(folder.path.name) == 2 + 16
    assert folder.state_folder(3, 120).name == "position-00000120-attempt-3"
    share = Share(attempt=3, position=120, step=119, rank=1, world=4, base=None, files=())
    assert share.name == "share-00001-of-00004.json"
    assert folder.folder_of(share) == folder.state_folder(3, 120)
    entries = tuple(FileEntry(name, size, "0" * 64) for name, size in (("a", 3), ("b", 4)))
    assert share.model_copy(update={"files": entries}).bytes == 7


@pytest.mark.parametrize(("world", "fits"), [(0, False), (1, True), (2**31 - 1, True), (2**31, False)])
def test_a_share_is_of_at_least_one_rank(world: int, fits: bool):
    values = {"attempt": 1, "position": 1, "step": 1, "rank": 0, "base": "step-00000001", "files": ()}
    if fits:
        assert Share(world=world, **values).world == world
    else:
        with pytest.raises(ValueError, match="world"):
            Share(world=world, **values)


def test_a_state_is_begun_again_where_another_run_removes_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    folder, made = own(), []
    create = memory_folder.create_private

    def create_and_lose(path: Path) -> None:
        create(path)
        made.append(path)
        if len(made) < 10:
            path.rmdir()

    monkeypatch.setattr(memory_folder, "create_private", create_and_lose)
    assert folder.begin(1, 5) == folder.state_folder(1, 5)
    assert len(made) == 10
    assert folder.begin(1, 5).stat().st_mode & 0o777 == 0o700  # by another rank of the node
    assert folder.path.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(memory_folder, "create_private", lambda path: None)
    with pytest.raises(FileNotFoundError, match="is removed again and again"):
        MemoryFolder(root / "none/a").begin(1, 5)


def test_only_the_named_state_is_removed(root: Path):
    folder = own()
    for position, attempt in ((5, 1), (5, 2), (6, 1)):
        add(folder, position, attempt)
    folder.remove_state(1, 5)
    assert sorted((share.position, share.attempt) for share in folder.shares()) == [(5, 2), (6, 1)]
    folder.remove()
    assert list(root.iterdir()) == []  # the last run takes the folder of the user away


def test_a_share_whose_storage_fails_is_damaged(root: Path):
    folder = own()
    share = add(folder, 12)
    (file,) = root.rglob("model-*")
    file.write_bytes(b"weightz")
    assert folder.defect(share, sizes_only=True) == ""
    file.unlink()
    file.symlink_to(file.name)
    assert "symbolic links" in folder.defect(share)


@pytest.mark.parametrize(("age", "stays"), [(86_400, True), (86_401, False)])
def test_abandoned_is_what_nobody_wrote_for_a_day(root: Path, age: float, stays: bool):
    add(own("/runs/other"), 1)
    other = own("/runs/other").path
    for path in (other, *other.iterdir()):
        os.utime(path, (1000, 1000))
    remove_abandoned(own("/runs/own"), now=1000 + age)
    assert other.exists() is stays
    remove_abandoned(own("/runs/own"))  # the clock of this machine
    assert not other.exists()


def test_a_user_has_one_folder_and_a_node_one_identity(root: Path, tmp_path: Path):
    one, other = own(), own("/runs/b")
    assert one.path.parent == other.path.parent == root / f"motionmae-{os.geteuid()}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert memory_folder.node_identity(one) == f"{boot} {root.stat().st_dev} {one.path}"
    assert memory_folder.node_identity(one) != memory_folder.node_identity(other)


def test_a_link_is_not_private_and_free_space_is_that_of_df(root: Path, tmp_path: Path):
    private = tmp_path / "private"
    memory_folder.create_private(private)
    memory_folder.create_private(private)
    assert private.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(private)
    assert not memory_folder.is_private(tmp_path / "link")
    assert not memory_folder.is_private(tmp_path / "none")
    private.chmod(0o710)
    assert not memory_folder.is_private(private)
    with pytest.raises(PermissionError, match="closed to others"):
        memory_folder.create_private(private)
    free = shutil.disk_usage(tmp_path).free
    assert memory_folder.free_space(tmp_path) == pytest.approx(free, rel=0.05)
