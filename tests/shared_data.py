"""Where the real test data lie, beside a developer's checkout; tests that need them skip where they are absent."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

ABSENT = "the shared test data are not here"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=ABSENT)
