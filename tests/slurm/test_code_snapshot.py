import json
import resource
import subprocess
from pathlib import Path

import pytest

from slurm import code_snapshot


def _git(root: Path, *argv: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", str(root), *identity, *argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "package").mkdir(parents=True)
    (root / "package/module.py").write_text("value = 1\n")
    (root / ".gitignore").write_text("ignored.txt\n")
    _git(root, "init", "-q")
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "first")
    return root


def test_tracked_and_unignored_files_are_copied(repository: Path, tmp_path: Path) -> None:
    (repository / "package/module.py").write_text("value = 2\n")
    (repository / "new file.py").write_text("new\n")
    (repository / "ignored.txt").write_text("ignored\n")
    folder = code_snapshot.collect(repository).write(tmp_path / "run")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        ".gitignore",
        "new file.py",
        "package/module.py",
    ]
    assert (folder / "package/module.py").read_text() == "value = 2\n"


def test_records_commit_and_difference(repository: Path, tmp_path: Path) -> None:
    (repository / "package/module.py").write_text("value = 2\n")
    folder = code_snapshot.collect(repository).write(tmp_path / "run")
    record = json.loads(folder.with_suffix(".json").read_text())
    assert record["commit"] == _git(repository, "rev-parse", "HEAD").strip()
    assert record["changed"] is True
    assert "+value = 2" in folder.with_suffix(".diff").read_text()


def test_unchanged_code_is_one_snapshot_and_changed_code_another(repository: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = code_snapshot.collect(repository).write(run)
    assert code_snapshot.collect(repository).write(run) == first
    (repository / "package/module.py").write_text("value = 3\n")
    second = code_snapshot.collect(repository).write(run)
    assert second != first
    assert (first / "package/module.py").read_text() == "value = 1\n"


def test_run_folders_and_large_untracked_files_are_left_out(repository: Path, tmp_path: Path) -> None:
    (repository / "results/run").mkdir(parents=True)
    (repository / "results/run/log").write_text("log")
    with (repository / "video.bin").open("wb") as file:
        file.truncate(code_snapshot.LARGEST_UNTRACKED + 1)
    found = code_snapshot.collect(repository, outside=[repository / "results"])
    assert found.left_out == (Path("video.bin"),)
    assert found.files == (Path(".gitignore"), Path("package/module.py"))


def test_a_deleted_tracked_file_is_skipped(repository: Path, tmp_path: Path) -> None:
    (repository / "package/module.py").unlink()
    folder = code_snapshot.collect(repository).write(tmp_path / "run")
    assert not (folder / "package/module.py").exists()
    assert "deleted file" in folder.with_suffix(".diff").read_text()


def test_without_git_the_packages_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "unpacked"
    for name in ("motionmae/a.py", "motionmae/__pycache__/a.pyc", "configs/b.yaml", "notes/c.txt", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    found = code_snapshot.collect(root)
    assert [str(path) for path in found.files] == ["configs/b.yaml", "motionmae/a.py", "pyproject.toml"]
    assert found.commit == ""
    monkeypatch.setenv("PATH", "")  # no git program at all
    assert code_snapshot.collect(root).files == found.files


def test_a_failed_copy_leaves_no_file(repository: Path, tmp_path: Path) -> None:
    (repository / "package/large.py").write_text("x" * 10_000)
    snapshot = code_snapshot.collect(repository)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            snapshot.write(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "run/code").iterdir()) == []
    assert (snapshot.write(tmp_path / "run") / "package/large.py").exists()
