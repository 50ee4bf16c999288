"""Two rows of the paper's tables with one command, on a real Slurm: six dependent jobs."""

import sys
from pathlib import Path

import pytest

from benchmarks.experiments.ablations import AblationRow
from slurm.job_state import JobRecord
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import NO_STANDBY, TIMEOUT
from tests.training.shards import make_shards

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("ablations/table10_divided", "ablations/table10_shared")


@pytest.mark.long
def test_a_table_is_trained_fine_tuned_tested_and_printed(lab: Lab, tmp_path: Path) -> None:
    train, val = (make_shards(tmp_path / name, samples=4, classes=2) for name in ("train", "val"))
    small = ["clip.frames=4", "clip.stride=1", "clip.size=32", "clip.cube_size=8", "model.width=32", "model.depth=1"]
    small += ["model.heads=2", "model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1"]
    small += [
        "optim.global_batch_size=4",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "engine.micro_batch_size=4",
        "data.workers=0",
    ]
    small += [
        f"data.shards={train}",
        f"test.shards={val}",
        "monitoring.enabled=false",
        NO_STANDBY,
        "log.reconstruction_every_steps=0",
    ]
    flags = ["--nodes", "1", "--ntasks-per-node", "1", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "10"]
    # table10_divided is the paper's default, which table5a_both trains
    command = [
        sys.executable,
        "-m",
        "benchmarks.experiments.ablations",
        "--tables",
        "10",
        "--runs",
        str(tmp_path / "runs"),
    ]
    started = lab.run(*command, "--", *flags, *small, cwd=ROOT)
    assert started.returncode == 0, started.stderr
    again = lab.run(*command, "--", *flags, *small, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert "job" not in again.stdout  # nothing is missing
    for row in (AblationRow(name, tmp_path / "runs") for name in ROWS):
        job = JobRecord.read(row.jobs()[-1].folder)
        assert job is not None
        state = lab.wait_for_job(job.job_id, ("COMPLETED", "FAILED", "CANCELLED"), TIMEOUT)
        assert state == "COMPLETED", Path(job.log).read_text() if Path(job.log).exists() else "no log"
    collected = lab.run(*command, "--collect", cwd=ROOT).stdout
    assert collected.count("| done |") == 2, collected
