import os
from collections.abc import Iterator

import pytest

from tests.slurm_lab.lab import Lab, missing


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The four-node cluster, started once; where it cannot be, tests are skipped, but fail in CI."""
    reason = missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with Lab(nodes=4) as started:
        yield started
