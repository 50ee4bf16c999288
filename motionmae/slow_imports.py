"""Imports that other packages make for features that this project does not use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_package(name: str) -> Iterator[None]:
    """Make ``import name`` raise ImportError meanwhile, unless the package is imported already.

    For imports of packages that can do without an optional package, but import it, for seconds, where it is installed.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's mark of a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules[name]
