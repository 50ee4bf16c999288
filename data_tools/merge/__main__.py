"""Start of ``python data_tools/merge`` and of ``python -m data_tools.merge``."""

import sys
from pathlib import Path

if not __package__:  # started as a folder, whose own path stands first; the packages lie two levels up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_tools.merge import main

if __name__ == "__main__":
    sys.exit(main())
