"""`python data_tools/preview` is `motionmae shards preview`, and needs no installation."""

import sys
from pathlib import Path
from runpy import run_path

if __name__ == "__main__":
    sys.argv[1:1] = ["shards", "preview"]
    run_path(str(Path(__file__).resolve().parents[2] / "motionmae"), run_name="__main__")
