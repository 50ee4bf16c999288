import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_lab.lab import Lab, missing
from tests.slurm_lab.steps import CASES, submit_case


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest stories: what other tests here wait for then happens meanwhile."""
    items.sort(key=lambda item: "test_survival" not in item.nodeid)


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


@pytest.fixture(scope="session")
def step_jobs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Run folder and id of a job for each case; a minute of waiting, which other tests may use by asking for it too."""
    folder = tmp_path_factory.mktemp("steps")
    return {name: (folder / name, submit_case(lab, folder / name, case)) for name, case in CASES.items()}
