import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm_lab.lab import Lab, missing
from tests.slurm_lab.runs import RunResult, train_undisturbed
from tests.slurm_lab.steps import CASES, submit_case
from tests.training.shards import make_shards


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
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 12 videos, which the runs of the lab read."""
    return make_shards(tmp_path_factory.mktemp("lab_data") / "shards", samples=12)


@pytest.fixture(scope="session")
def undisturbed(
    lab_machine: None, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[RunResult]]:
    """A run on two nodes without any fault, started beside the first test that uses it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(train_undisturbed, tmp_path_factory.mktemp("undisturbed"), shards)


@pytest.fixture(scope="session")
def step_jobs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Run folder and job ID of each case. The jobs take a minute, during which other tests can run."""
    folder = tmp_path_factory.mktemp("steps")
    return {name: (folder / name, submit_case(lab, folder / name, case)) for name, case in CASES.items()}
