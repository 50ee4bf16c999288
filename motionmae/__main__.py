"""Command `motionmae`, also run as `python -m motionmae` or, without installation, `python CLONE/motionmae`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # Python has put this file's folder on the path, not the parent folder with the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from motionmae.commands import app  # needs the path

    return app.main(argv)


if __name__ == "__main__":
    sys.exit(main())
