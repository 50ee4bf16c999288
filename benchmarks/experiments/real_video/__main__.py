"""Start of ``python -m benchmarks.experiments.real_video``."""

import sys

from benchmarks.experiments.real_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
