import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm_lab.lab import Lab, LabError

ROOT = Path(__file__).resolve().parents[2]


def _processes_of(folder: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if folder in line:
            found.append(line)
    return found


def test_a_job_step_runs_on_every_node(lab: Lab) -> None:
    assert sorted(lab.run("srun", "-N4", "hostname").stdout.split()) == ["node1", "node2", "node3", "node4"]


def test_nothing_stays_when_the_owner_of_a_lab_is_killed(lab: Lab) -> None:
    text = """
import time
from tests.slurm_lab.lab import Lab
with Lab(2) as lab:
    print(lab.folder, flush=True)
    time.sleep(99)
"""
    owner = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = owner.stdout.readline().strip()  # a second lab, beside the session's
    assert len(_processes_of(folder)) > 4
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    end = time.monotonic() + 20
    while (left := _processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    assert folder not in Path("/proc/mounts").read_text()
    assert not any(link.name.startswith(("lab0", "cable")) for link in Path("/sys/class/net").iterdir())
    shutil.rmtree(folder)


def test_a_lab_that_cannot_start_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slurm_lab.lab._NODE_SCRIPT", "echo the node has burnt down; exit 1")
    lab = Lab(1)
    with pytest.raises(LabError, match="burnt down"), lab:
        pass
    assert not lab.folder.exists()
    assert _processes_of(str(lab.folder)) == []
