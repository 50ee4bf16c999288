"""Common main of the benchmark scripts."""

import sys
from collections.abc import Callable

from motionmae.errors import UserError


def run_script(main: Callable[[], int | None]) -> int:
    """Exit status of ``main``. A UserError is printed as one sentence and gives status 2, as in the commands."""
    try:
        return main() or 0
    except UserError as error:
        if not error.already_reported:
            print(f"error: {error}", file=sys.stderr)
        return 2
