import subprocess
from pathlib import Path

import pytest

from motionmae.runs.events import Kind, read_rows
from slurm.attempt_log import AttemptLog
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import NO_STANDBY, TrainingRun
from tests.training.shards import make_shards


@pytest.mark.long
@pytest.mark.usefixtures("lab")  # for its verdict on whether this machine can hold one
def test_a_node_whose_storage_is_read_only_is_named_and_left_out(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", samples=12)
    with Lab(nodes=3) as lab:
        run = TrainingRun(
            lab,
            tmp_path,
            shards,
            "--nodes",
            "2",
            NO_STANDBY,
            "optim.warmup_epochs=0",
            "launch.preflight_seconds=40",
            steps=4,
        )
        run.path.mkdir(parents=True)
        for argv in (["--bind", str(run.path)], ["-o", "remount,ro,bind"]):
            subprocess.run([*lab.on_node("node2"), "mount", *argv, str(run.path)], check=True)
        run.submit()
        run.finish()
        job = run.job()
        said = run.submit()  # once more, to see what it says of the node
    assert run.nodes() == ["node1", "node3"]
    assert job["ExcNodeList"] == "node2"
    assert list(AttemptLog(run.path).excluded_nodes()) == ["node2"]
    failures = [row for row in read_rows(run.path / "events.jsonl") if row["kind"] == Kind.FAILURE.value]
    assert failures[0]["again"]
    assert failures[0]["excluded"] == {"node2": "a node or its GPU failed"}
    assert "excluded   node2 (a node or its GPU failed)" in said
