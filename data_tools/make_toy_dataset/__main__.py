"""Run `motionmae shards toy` without installation, as `python data_tools/make_toy_dataset`."""

import sys
from pathlib import Path
from runpy import run_path

sys.argv[1:1] = ["shards", "toy"]
run_path(str(Path(__file__).resolve().parents[2] / "motionmae"), run_name="__main__")
