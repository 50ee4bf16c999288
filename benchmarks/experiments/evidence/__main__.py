"""Start of ``python -m benchmarks.experiments.evidence``."""

import sys

from benchmarks.experiments.evidence.cli import main

if __name__ == "__main__":
    sys.exit(main())
