"""How a benchmark script begins and ends."""

import sys
from collections.abc import Callable

from motionmae.errors import UserError


def run_script(main: Callable[[], int | None]) -> int:
    """The exit status of ``main``; a user's mistake is one sentence and status 2, as of the commands."""
    try:
        return main() or 0
    except UserError as error:
        if not error.already_reported:
            print(f"error: {error}", file=sys.stderr)
        return 2
