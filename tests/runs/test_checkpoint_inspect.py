import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.runs import memory_folder
from motionmae.runs.checkpoint_store import CheckpointStore, describe
from motionmae.runs.events import Kind, LineFile
from motionmae.runs.lease import FILE, acquire_lease, run_identity
from motionmae.runs.memory_folder import MemoryFolder, Share

WEIGHTS = "model-00000-of-00001.safetensors"


def save(store: CheckpointStore, step: int) -> Path:
    folder = store.begin(step)
    path = folder / WEIGHTS
    path.write_bytes(b"weights" * 1000)
    state = {"trainer": {"data_step": step}, "writer": {"world": 4, "zero_stage": 2}}
    return store.commit(folder, step, state, [describe(path)]).folder


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[3456] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def command(run: Path, *flags: str) -> tuple[int, list[dict]]:
    """Exit status, and the rows of the table."""
    out = run.parent / "table.json"
    out.unlink(missing_ok=True)
    status = main(["checkpoints", str(run), "--json", str(out), *flags])
    return status, json.loads(out.read_text()) if out.exists() else []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 10, 20 and 30, whose attempt has said that it ended."""
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    for step in (10, 20, 30):
        save(CheckpointStore(folder / "checkpoints"), step)
    events = LineFile(folder / "events.jsonl")
    events.append({"attempt": acquire_lease(folder).attempt.id, "kind": Kind.STOP, "step": 30, "time": 1.0})
    events.close()
    return folder


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_resume_loads_the_newest(run: Path, capsys: pytest.CaptureFixture[str]):
    status, rows = command(run)
    assert status == 0
    assert [(row["step"], row["status"], row["resumes"]) for row in rows] == [
        (30, "complete", True), (20, "complete", False), (10, "complete", False),
    ]  # fmt: skip
    assert rows[0]["bytes"] > 7000
    assert rows[0]["writer"] == {"world": 4, "zero_stage": 2}
    shown = capsys.readouterr().out
    assert "step-00000030" in shown
    assert "4 ranks, ZeRO 2" in shown.replace("\n", " ")


def test_damage_is_found_and_repaired(run: Path, capsys: pytest.CaptureFixture[str]):
    store = CheckpointStore(run / "checkpoints")
    flip_byte(run / "checkpoints/step-00000030")
    (run / "checkpoints/step-00000020" / WEIGHTS).write_bytes(b"short")
    (run / "checkpoints/damaged-step-00000005").mkdir()
    store.begin(40, 3)
    assert command(run)[0] == 1  # sizes alone show one of the two
    status, rows = command(run, "--verify")
    assert status == 1
    found = [(row["name"], row["status"], row["resumes"]) for row in rows]
    assert found == [
        ("step-00000030", "damaged", False),
        ("step-00000020", "damaged", False),
        ("step-00000010", "valid", True),
        ("damaged-step-00000005", "damaged", False),
        (".unfinished-3-step-00000040", "unfinished", False),
    ]
    assert "does not have the sha256" in rows[0]["reason"]
    assert "has 5 bytes" in rows[1]["reason"]
    assert len(names(run)) == 5  # nothing was touched
    assert command(run, "--repair")[0] == 0
    assert "deleted step-00000030, step-00000020, damaged-step-00000005" in capsys.readouterr().out
    assert names(run) == ["step-00000010"]
    assert command(run, "--verify")[0] == 0


def test_of_a_link_to_an_archive_only_the_link_is_deleted(run: Path, capsys: pytest.CaptureFixture[str]):
    archive, link = run / "archive", run / "checkpoints/step-00000020"
    link.rename(archive)
    link.symlink_to(archive)
    flip_byte(archive)
    assert command(run, "--repair")[0] == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"deleted the link step-00000020 (not its target {archive})" in said
    assert names(run) == ["step-00000010", "step-00000030"]
    assert (archive / WEIGHTS).exists()


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"format": 1, "step": 1e400, "files": []}', b'{"format": [1]}', b"null", b"\xff"]
)
def test_a_hostile_manifest_is_listed_as_damaged(run: Path, capsys: pytest.CaptureFixture[str], content: bytes):
    (run / "checkpoints/step-00000030/manifest.json").write_bytes(content)
    (run / "checkpoints/step-00000020/state.json").write_bytes(content)
    status, rows = command(run)
    assert status == 1
    assert [row["status"] for row in rows] == ["damaged", "damaged", "complete"]
    assert "manifest.json is not readable" in rows[0]["reason"]


def test_an_unreadable_checkpoint_is_not_deleted(run: Path, capsys: pytest.CaptureFixture[str]):
    for step in (20, 30):
        path = run / f"checkpoints/step-000000{step}" / WEIGHTS
        path.unlink()
        if step == 30:
            path.symlink_to(path.name)
    status, rows = command(run, "--verify")
    assert status == 1
    found = [(row["step"], row["status"], row["resumes"]) for row in rows]
    assert found == [(30, "unreadable", False), (20, "damaged", False), (10, "valid", False)]
    assert "1 cannot be read but may be valid" in capsys.readouterr().out
    assert command(run, "--repair")[0] == 0
    assert names(run) == ["step-00000010", "step-00000030"]


def test_the_last_checkpoints_are_never_deleted_however_damaged(run: Path, capsys: pytest.CaptureFixture[str]):
    for step in (10, 20, 30):
        flip_byte(run / f"checkpoints/step-000000{step}")
    assert command(run, "--repair")[0] == 2
    assert "all 3 checkpoints" in capsys.readouterr().err
    assert len(names(run)) == 3


def test_a_run_that_may_be_alive_is_not_repaired(run: Path, capsys: pytest.CaptureFixture[str]):
    flip_byte(run / "checkpoints/step-00000030")
    acquire_lease(run)  # by this running process
    assert command(run, "--verify")[0] == 1
    assert command(run, "--repair")[0] == 2
    assert f"attempt 2 of this run runs as process {os.getpid()}" in capsys.readouterr().err
    owner = json.loads((run / FILE).read_text())
    (run / FILE).write_text(json.dumps(owner | {"host": "another-node"}))
    assert command(run, "--repair")[0] == 2
    assert "may run as process" in capsys.readouterr().err
    assert len(names(run)) == 3
    assert command(run, "--repair", "--force")[0] == 0
    assert len(names(run)) == 2


def test_a_killed_process_holds_no_lease(run: Path):
    text = "import sys, pathlib; from motionmae.runs.lease import *; acquire_lease(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", text, str(run)], cwd=Path(__file__).parents[2], check=True)
    flip_byte(run / "checkpoints/step-00000030")
    assert command(run, "--repair")[0] == 0
    assert len(names(run)) == 2


def test_it_needs_no_torch_and_says_what_is_no_run(run: Path, capsys: pytest.CaptureFixture[str]):
    text = (
        "import sys; from motionmae.__main__ import main; status = main(sys.argv[1:]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    child = [sys.executable, "-c", text, "checkpoints", str(run), "--verify"]
    assert subprocess.run(child, cwd=Path(__file__).parents[2], capture_output=True).returncode == 0
    assert main(["checkpoints", str(run.parent)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def copy_to_memory(folder: MemoryFolder, step: int, ranks: range, world: int) -> Path:
    state = folder.begin(2, step)
    for rank in ranks:
        path = state / f"model-{rank:05d}-of-{world:05d}.safetensors"
        path.write_bytes(b"weights")
        files = (describe(path),)
        folder.commit(Share(attempt=2, position=step, step=step, rank=rank, world=world, base=None, files=files))
    return state


def test_memory_copies_on_this_node_are_listed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (run.parent / "shm").mkdir()
    monkeypatch.setattr(memory_folder, "ROOT", run.parent / "shm")
    folder = memory_folder.memory_folder(run, run_identity(run))
    whole = copy_to_memory(folder, 34, range(2), 2)
    copy_to_memory(folder, 36, range(1), 2)
    status, rows = command(run, "--verify")
    assert status == 0
    assert [(row["step"], row["status"], row["reason"]) for row in rows[:2]] == [
        (36, "partial", "shares of 1 of 2 ranks"), (34, "valid", ""),
    ]  # fmt: skip
    assert [row["step"] for row in rows[2:]] == [30, 20, 10]
    assert capsys.readouterr().out.count("in memory") == 2
    (whole / "model-00001-of-00002.safetensors").write_bytes(b"weightz")
    assert command(run)[1][1]["status"] == "complete"
    assert command(run, "--verify")[1][1]["status"] == "damaged"
    assert command(run, "--repair")[0] == 0  # of the checkpoints on disk only
    assert len(list(folder.shares())) == 3
