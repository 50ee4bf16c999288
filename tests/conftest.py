"""What holds for every test."""

import os
import signal
from collections.abc import Generator, Iterator

import pytest

from tests.shared_data import ABSENT

# Started in the background by a shell, or by nohup, pytest ignores these, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the user's cache folder, which may hold measured speeds of GPUs, or writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One of pytest-xdist's workers has all tests of the Slurm lab: they share it, and mostly wait."""
    for item in items:
        if "slurm_lab" in item.path.parts or "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("slurm lab"))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In continuous integration nothing real may be missing, but for the data that the project does not ship."""
    if os.environ.get("CI") and report.skipped and ABSENT not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
