import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_lab.lab import Lab, missing
from tests.slurm_lab.steps import CASES, submit_case


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest scenarios first; the jobs of the other tests run in the meantime."""
    items.sort(key=lambda item: "test_survival" not in item.nodeid)


@pytest.fixture(scope="session")
def lab_machine() -> None:
    """A machine that can run a lab. On any other, tests are skipped; in CI they fail."""
    if reason := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def lab(lab_machine: None) -> Iterator[Lab]:
    """A four-node cluster for the session."""
    with Lab(nodes=4) as started:
        yield started


@pytest.fixture(scope="session")
def step_jobs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Run folder and job ID of each case. The jobs take a minute, during which other tests can run."""
    folder = tmp_path_factory.mktemp("steps")
    return {name: (folder / name, submit_case(lab, folder / name, case)) for name, case in CASES.items()}
