import json
import os
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
    (tmp_path / "cache.py").write_text("linked by an installer")
    (root / "motionmae/linked.py").symlink_to(tmp_path / "cache.py")
    (root / "motionmae/.env").write_text("x")
    assert _names(code_snapshot.collect(root).secret) == ["motionmae/.env"]
    assert Path("motionmae/linked.py") in (found := code_snapshot.collect(root)).files
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


def _names(paths: tuple[Path, ...]) -> list[str]:
    return [str(path) for path in paths]


SECRET = (
    ".env", ".env.local", "prod.env", ".envrc", "server.pem", "server.key", "server.key.bak", "id_rsa", "id_ed25519_sk",
    "work_id_rsa", ".netrc", ".ssh/config", "secrets/wandb.txt", "aws-credentials-old.txt", "credentials.json",
    "my_credentials.py", "wandb_key.txt", "api_key", "password.txt", "HF_TOKEN", "venv/.env/bin/python",
)  # fmt: skip
HONEST = ("keys.py", "monkey.txt", "secret_files.py", "tokenizer.json", "environment.yaml", "id_map.json", "keys.md")


def test_files_that_look_like_keys_are_left_out_and_the_user_is_told(repository: Path, tmp_path: Path) -> None:
    for name in (*SECRET, *HONEST):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x\n")
    (repository / "notes.txt").write_text("\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n")
    found = code_snapshot.collect(repository)
    assert _names(found.secret) == sorted((*SECRET, "notes.txt"))
    assert _names(found.untracked) == sorted(HONEST)
    notes = list(found.notes())
    assert len(notes) == len(SECRET) + 2
    assert notes[0] == ".env is not part of the code snapshot, because it looks like a key or leaves the code"
    assert notes[-1] == f"the code snapshot holds files that are not in git: {', '.join(sorted(HONEST))}"
    folder = found.write(tmp_path / "run")
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert copied == {".gitignore", "package/module.py", *HONEST}
    record = json.loads(folder.with_suffix(".json").read_text())
    assert record["untracked"] == sorted(HONEST)
    assert ".env" in record["left_out"]


KEY = "-----BEGIN RSA PRIVATE KEY-----"
SECRETS = {
    "gcp.json": f'{{"type": "service_account", "private_key": "{KEY}\\nMII"}}',
    "service-account-7.json": "{}",
    "deep.yaml": " " * 5000 + f"\nkey: {KEY}",
    "keys_of_mine.py": f'KEY = """{KEY}',
    "cluster.sh": "cd /x\nexport WANDB_API_KEY='0123abc'\n",
    "run.cfg": "AWS_SECRET_ACCESS_KEY=abc/def+7\n",
    "site.yaml": "token: ghp_" + 36 * "a",
    ".bash_history": "ls",
    "kaggle.json": "{}",
    ".dockerconfigjson": "{}",
}
HARMLESS = {
    "tokenizer.json": "{}",
    "job.sh": "export HF_TOKEN=$(cat ~/.token)\nexport WANDB_API_KEY=$KEY\nMAX_TOKEN=100000\n",
    "model.py": "class Model:\n    MASK_TOKEN=make(3)\n    TOKEN = 17\n",
    "run_history.py": "rows = []",
}


def test_content_of_keys_is_recognised_in_files_that_are_not_in_git(repository: Path) -> None:
    for name, content in {**SECRETS, **HARMLESS}.items():
        (repository / name).write_text(content)
    snapshot = code_snapshot.collect(repository)
    assert set(map(str, snapshot.secret)) == SECRETS.keys()
    assert HARMLESS.keys() <= set(map(str, snapshot.untracked))


def test_a_key_in_a_tracked_setting_is_not_in_the_difference(repository: Path) -> None:
    (repository / "site.json").write_text(SECRETS["gcp.json"])
    _git(repository, "add", "site.json")
    snapshot = code_snapshot.collect(repository)
    assert Path("site.json") in snapshot.secret
    assert KEY.encode() not in snapshot.diff


def test_links_are_judged_by_what_they_lead_to(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("private\n")
    (repository / "ignored.txt").write_text("-----BEGIN PRIVATE KEY-----\n")
    (repository / ".env").write_text("x\n")
    for name, target in (("a.txt", tmp_path / "outside.txt"), ("b.txt", Path("ignored.txt")), ("c.txt", Path(".env"))):
        (repository / name).symlink_to(target)
    (repository / "d.py").symlink_to("package/module.py")
    found = code_snapshot.collect(repository)
    assert _names(found.secret) == [".env", "a.txt", "b.txt", "c.txt"]
    assert Path("d.py") in found.files


def test_tracked_keys_are_neither_copied_nor_in_the_difference(repository: Path, tmp_path: Path) -> None:
    for name in (".env", "credentials.py", "deleted.key", "renewed.txt"):
        (repository / name).write_text("-----BEGIN PRIVATE KEY-----\nolder\n" if name == "renewed.txt" else "older\n")
    _git(repository, "add", ".")
    _git(repository, "commit", "-qm", "second")
    for name in (".env", "credentials.py", "renewed.txt"):
        (repository / name).write_text("newer\n")
    (repository / "deleted.key").unlink()
    found = code_snapshot.collect(repository)
    folder = found.write(tmp_path / "run")
    diff = folder.with_suffix(".diff").read_text()
    assert _names(found.secret) == [".env"]
    assert "b/credentials.py" in diff  # source code in git, which other code imports
    assert diff.count("older") == diff.count("newer") == 1


def test_the_difference_is_readable_for_the_owner_alone(repository: Path, tmp_path: Path) -> None:
    (repository / "package/module.py").chmod(0o600)
    (repository / "package/module.py").write_text("value = 2\n")
    before = os.umask(0o002)
    try:
        folder = code_snapshot.collect(repository).write(tmp_path / "run")
    finally:
        os.umask(before)
    assert folder.with_suffix(".diff").stat().st_mode & 0o777 == 0o600
    assert (folder / "package/module.py").stat().st_mode & 0o777 == 0o600


def test_names_of_files_cannot_write_to_the_terminal(repository: Path) -> None:
    (repository / "a\x1b[2J\nb.py").write_text("x\n")
    assert list(code_snapshot.collect(repository).notes()) == [
        "the code snapshot holds files that are not in git: a\\x1b[2J\\nb.py"
    ]


def test_a_program_that_becomes_executable_is_another_snapshot(repository: Path) -> None:
    before = code_snapshot.collect(repository).name
    (repository / "package/module.py").chmod(0o755)
    after = code_snapshot.collect(repository).name
    assert before != after
    assert len(after) == 12
