"""Mark of tests that need FFCV: skipped on a developer's machine without it, never in continuous integration."""

import importlib.util
import os

import pytest

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None and not os.environ.get("CI"),
    reason="FFCV is not installed (pip install 'motionmae[ffcv]')",
)
