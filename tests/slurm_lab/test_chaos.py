"""The chaos of twenty faults as a test: `pytest -m chaos`. Other seeds: `python -m tests.slurm_lab.chaos --seed N`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.chaos
@pytest.mark.usefixtures("lab")  # for its verdict on whether this machine can hold one
def test_twenty_faults_change_no_loss_and_no_weight() -> None:
    command = [sys.executable, "-m", "tests.slurm_lab.chaos", "--seed", "0", "--faults", "20"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
