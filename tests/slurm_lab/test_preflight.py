import subprocess
from pathlib import Path

import pytest

from slurm.attempts import Attempts
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import TrainingRun
from tests.training.shards import make_shards


@pytest.mark.long
def test_a_node_whose_storage_is_read_only_is_named_and_left_out(lab: Lab, tmp_path: Path) -> None:
    run = TrainingRun(lab, tmp_path, make_shards(tmp_path / "shards", samples=12), "--nodes", "2", steps=4)
    run.path.mkdir(parents=True)
    for words in (["--bind", str(run.path)], ["-o", "remount,ro,bind"]):
        subprocess.run([*lab.on_node("node2"), "mount", *words, str(run.path)], check=True)
    said = run.submit()
    run.finish()
    assert "excluded" not in said
    assert run.nodes() == ["node1", "node3"]
    log = Path(run.record.log).read_text()
    assert f"error: pre-flight: node2 is no good: writing 1 MiB to {run.path} fails (" in _logs(run)
    assert "a node failed its pre-flight on node2: queued again" in log
    assert list(Attempts(run.path).excluded()) == ["node2"]
    assert run.job()["ExcNodeList"] == "node2"
    assert "excluded   node2 (a node failed its pre-flight)" in run.submit()  # once more, to see the sentence


def _logs(run: TrainingRun) -> str:
    return "".join(path.read_text() for path in Path(run.record.log).parent.glob("*.out"))
