"""Start of ``python benchmarks/experiments/evidence``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if not __package__:  # started as a folder, whose own path stands first; the packages lie two levels up
    sys.path[0] = str(ROOT)

from benchmarks.experiments.evidence.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
