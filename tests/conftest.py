"""What holds for every test."""

import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest

from motionmae.distributed.rendezvous import TORCHRUN_VARIABLES
from tests.shared_data import ABSENT

PROCESSES = {"subprocess", "multiprocessing", "Popen", "run_ranks", "Ranks", "Lab"}
"""Names by which a file of tests can start processes."""

# Started in the background by a shell, or by nohup, pytest ignores these, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the user's cache folder, which may hold measured speeds of GPUs, or writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_rank_of_an_earlier_test() -> Iterator[None]:
    """A process that a test starts does not inherit the rank of a process group that another test created here."""
    yield
    for name in TORCHRUN_VARIABLES:
        os.environ.pop(name, None)


LAB = "slurm lab"


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "leave out tests marked `long` or `slow`, and the files that start processes (make test-fast)"
    parser.addoption("--fast", action="store_true", help=text)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Distribute the tests to pytest-xdist's workers, with --dist loadgroup and --no-loadscope-reorder.

    Tests that share a fixture run on one worker, which sets it up once. All tests of the Slurm lab are one such group,
    which mostly waits. It is started first, then what takes long, so that no worker is idle at the end.
    """
    if config.getoption("fast"):
        slow = {item for item in items if {"long", "slow"} & {mark.name for mark in item.iter_markers()}}
        slow |= {item for item in items if _starts_processes(item)}
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
    groups = {item: _group_of(item) for item in items}
    for item, group in groups.items():
        if group and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group))
    if not hasattr(config, "workerinput"):
        return  # the order of the files
    long = {group for item, group in groups.items() if group and item.get_closest_marker("long")}

    def place(item: pytest.Item) -> int:
        group = groups[item]
        takes_long = group in long or item.get_closest_marker("long")
        return 0 if group == LAB else 1 if takes_long else 2 if group else 3

    items.sort(key=place)


def _group_of(item: pytest.Item) -> str:
    """Return the file or folder whose fixture of a module or session the test uses, the lab, or nothing."""
    if "slurm_lab" in item.path.parts or "lab" in getattr(item, "fixturenames", ()):
        return LAB
    if chosen := item.get_closest_marker("xdist_group"):
        return str(chosen.args[0])
    info = getattr(item, "_fixtureinfo", None)
    used = [fixtures[-1] for fixtures in (info.name2fixturedefs.values() if info else ())]
    shared = {each.baseid for each in used if each.scope in ("module", "session") and each.baseid.startswith("tests/")}
    return min(shared, key=len, default="")


def _starts_processes(item: pytest.Item) -> bool:
    """Return whether the test's file, or one of a fixture that it uses, has a name that starts processes."""
    info = getattr(item, "_fixtureinfo", None)
    used = [fixtures[-1].func.__module__ for fixtures in (info.name2fixturedefs.values() if info else ())]
    files = {item.module.__name__, *(name for name in used if name.startswith("tests."))}
    return any(PROCESSES & vars(sys.modules[name]).keys() for name in files)


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
