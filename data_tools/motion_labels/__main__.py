"""Run `motionmae shards motion-labels` without installation, as `python data_tools/motion_labels`."""

import sys
from pathlib import Path
from runpy import run_path

sys.argv[1:1] = ["shards", "motion-labels"]
run_path(str(Path(__file__).resolve().parents[2] / "motionmae"), run_name="__main__")
