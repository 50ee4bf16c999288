import subprocess
import sys

import pytest

from tests.commands import submit_shards as main
from tests.slurm.jobs import ROOT


def test_the_dry_run_shows_an_array_and_the_job_after_it(tmp_path, capsys):
    command = ["folder", "--videos", "my videos", "--out", str(tmp_path / "out")]
    assert main(["--parts", "3", "--cpus", "5", "--sbatch", "partition=cpu", "--dry-run", "--", *command]) == 0
    array, last = capsys.readouterr().out.split("#!/bin/sh\n")[1:]
    assert "#SBATCH --array=0-2\n" in array
    assert array.rstrip().endswith('--part "$SLURM_ARRAY_TASK_ID/3"')
    assert "#SBATCH --dependency=afterany:ARRAY\n" in last
    assert "--part " not in last
    for script in (array, last):
        assert "--workers 5 folder --videos 'my videos'" in script
        assert "#SBATCH --partition=cpu\n" in script
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--part", "0/2"], ["--no-such-option"]])
def test_a_command_that_make_shards_would_refuse_is_not_submitted(tmp_path, more):
    command = [
        sys.executable,
        "-m",
        "motionmae",
        "shards",
        "submit",
        "--parts",
        "2",
        "--",
        "folder",
        "--videos",
        "v",
        "--out",
        "o",
        *more,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert more[0].removesuffix("s") in done.stderr
    assert not (tmp_path / "o").exists()
