"""The end of a benchmark script."""

import sys
from collections.abc import Callable
from typing import NoReturn

from motionmae.commands.app import run


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and end the process, with the messages and exit statuses of `motionmae`."""
    sys.exit(run(main))
