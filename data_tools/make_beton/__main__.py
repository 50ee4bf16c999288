"""`python data_tools/make_beton` is `motionmae shards beton`, and needs no installation."""

import sys
from pathlib import Path
from runpy import run_path

if __name__ == "__main__":
    sys.argv[1:1] = ["shards", "beton"]
    run_path(str(Path(__file__).resolve().parents[2] / "motionmae"), run_name="__main__")
