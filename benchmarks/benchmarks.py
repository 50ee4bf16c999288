"""Lets `python benchmarks/NAME.py` find the packages of a clone that is not installed.

Python searches the folder of a script first, so the first import from `benchmarks` in a script loads this module. It
puts the root of the clone on the path instead of that folder, and gives way to the package `benchmarks`.
"""

import importlib
import sys
from pathlib import Path

if __name__ == "benchmarks":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    del sys.modules["benchmarks"]
    importlib.import_module("benchmarks")
