"""Names in a run folder, and the refusal of a folder that is no run's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder

NAMES = {
    "config": "config.yaml", "code": "code", "events": "events.jsonl", "metrics": "metrics.jsonl",
    "attempts": "attempts.jsonl", "lease": "lease.json", "job": "job.json", "checkpoints": "checkpoints",
    "encoder": "encoder.safetensors", "logs": "logs", "trackers": "trackers.json", "tensorboard": "tensorboard",
    "validation": "validation", "reconstructions": "reconstructions",
}  # fmt: skip
LEASE = {"number": 1, "id": "a", "host": "n1"}
JOB = {"cluster": "local", "job_id": "7"}


def test_the_names_are_those_of_the_documentation(tmp_path: Path) -> None:
    found = vars(RunFolder(tmp_path))
    assert found.pop("path") == tmp_path
    assert found == {key: tmp_path / name for key, name in NAMES.items()}


def test_a_run_has_folders_for_checkpoints_and_logs(tmp_path: Path) -> None:
    for _ in range(2):
        RunFolder(tmp_path / "a/b").create()
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["checkpoints", "logs"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the run folder .*file cannot be created \(.*\): set output_dir=FOLDER"):
        RunFolder(tmp_path / "file").create()


FILES = ("config.yaml", "encoder.safetensors", "lease.json", "job.json", "trackers.json", "events.jsonl",
         "metrics.jsonl", "attempts.jsonl")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path, name: str) -> None:
    RunFolder(tmp_path).refuse_foreign()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    RunFolder(tmp_path).refuse_foreign()
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name} is not a file of a run, and a run would overwrite it"):
        RunFolder(tmp_path).refuse_foreign()


def _write(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(content) + "\n")


@pytest.mark.parametrize(
    ("write", "is_run"),
    [
        (_write("lease.json", LEASE), True),
        (_write("lease.json", {"number": 1, "id": "a"}), False),
        (_write("job.json", JOB), True),
        (_write("job.json", {"cluster": "local"}), False),
        (_write("events.jsonl", {"time": 1, "kind": "start"}), True),
        (_write("attempts.jsonl", {"time": 1, "what": "start"}), True),
        (_write("events.jsonl", {"time": 1}), False),
        (_write("events.jsonl", {"kind": "start"}), False),
    ],
)
def test_a_run_is_known_by_its_own_rows(tmp_path: Path, write: Callable[[Path], object], is_run: bool) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0")
    write(tmp_path)
    if is_run:
        RunFolder(tmp_path).refuse_foreign()
    else:
        with pytest.raises(UserError, match="is not a file of a run"):
            RunFolder(tmp_path).refuse_foreign()


@pytest.mark.parametrize("name", FILES[:5])
def test_a_link_in_a_run_folder_is_not_written_through(tmp_path: Path, name: str) -> None:
    _write("events.jsonl", {"time": 1, "kind": "start"})(tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name} is not a file of a run"):
        RunFolder(tmp_path).refuse_foreign()
