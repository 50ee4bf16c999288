"""`python slurm/submit.py` is `motionmae submit`, and needs no installation."""

import sys
from pathlib import Path
from runpy import run_path

if __name__ == "__main__":
    sys.argv[1:1] = ["submit"]
    run_path(str(Path(__file__).resolve().parents[1] / "motionmae"), run_name="__main__")
