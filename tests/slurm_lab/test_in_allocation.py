"""Restarts inside the allocation: the faults of the table of that name in docs/measurements/faults.md.

The costs are written to the file that the variable SURVIVAL_JSON names, as in test_survival.py.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.slurm_lab import faults
from tests.slurm_lab.faults import Damage, aftermath, strike
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import CHECKPOINT_STEPS, RATE, RunResult, TrainingRun, rank_processes

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lab")]  # the fixture skips if this machine cannot run a lab
WAITING_RATE = "80mbit"
"""Bandwidth while the standby processes start, which takes up to half a minute: few steps are taken."""
STANDBY_SECONDS = 120.0
"""Time in which the standby processes must be ready on a busy machine."""


def ranks_with_standby(folder: Path, shards: Path) -> RunResult:
    """A rank is killed, then a rank hangs, with standby processes."""
    return _run(folder, shards, ((faults.kill_rank, 1), (hang, 1)), "watchdog.step_seconds=4", nodes=2)


def ranks_without_standby(folder: Path, shards: Path) -> RunResult:
    """A rank is killed, then a rank hangs, without standby processes."""
    settings = ("launch.standby=false", "watchdog.step_seconds=4")
    return _run(folder, shards, ((faults.kill_rank, 1), (hang, 0)), *settings, nodes=2)


def spare(folder: Path, shards: Path) -> RunResult:
    """A node loses its cable, and a spare is there."""
    return _run(folder, shards, ((faults.unplug, 1),), "launch.spares=1", nodes=3)


def fewer_nodes(folder: Path, shards: Path) -> RunResult:
    """A node loses its power, and no spare is there."""
    return _run(folder, shards, ((faults.power_off, 1),), "launch.min_nodes=1", nodes=2)


def batch_host(folder: Path, shards: Path) -> RunResult:
    """The node of the batch script loses its power: the job is queued again, for the nodes that are left."""
    return _run(folder, shards, ((faults.power_off, 0),), "launch.spares=1", nodes=4)


def hang(run: TrainingRun, node: str) -> None:
    """A rank stops; the watchdog of the others ends them. Returns when the first of them has ended."""
    processes = rank_processes(run.lab, run.record.job_id)
    victim = processes.pop(run.nodes().index(node))
    os.kill(victim, signal.SIGSTOP)
    run.wait(
        lambda: not all(Path(f"/proc/{process}").exists() for process in processes.values()), "end by the watchdog"
    )


def _run(
    folder: Path,
    shards: Path,
    strikes: tuple[tuple[Callable[[TrainingRun, str], None], int], ...],
    *settings: str,
    nodes: int,
) -> RunResult:
    with Lab(nodes=nodes, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, "--nodes", "2", *settings)
        run.submit()
        damages = []
        for fault, rank in strikes:
            run.wait_for_steps(CHECKPOINT_STEPS + 2)
            if "launch.standby=false" not in settings:
                lab.change_rate(WAITING_RATE)
                wait_for_standby(run)
                lab.change_rate(RATE)
            damages.append(strike_and_time(run, fault, run.nodes()[rank]))
        run.finish()
        assert "Kill task failed" not in lab.run("sinfo", "-h", "-R").stdout  # Slurm could kill every process
        restarts = run.job()["Restarts"]
        return RunResult(run.tensors(), run.losses(), damages, {"restarts": restarts, "nodes": " ".join(run.nodes())})


def strike_and_time(run: TrainingRun, fault: Callable[[TrainingRun, str], None], node: str) -> Damage:
    if fault is not hang:
        return strike(run, fault, node)
    before = run.attempts()
    fault(run, node)
    return aftermath(run, "hang", time.time(), before)


def wait_for_standby(run: TrainingRun) -> None:
    """Wait until the standby processes of this attempt have done their imports."""
    end = time.monotonic() + STANDBY_SECONDS
    while not all(ready(process) for process in standby_processes(run.lab)) or not standby_processes(run.lab):
        assert time.monotonic() < end, f"no standby processes\n{run.log()}"
        time.sleep(0.1)


def standby_processes(lab: Lab) -> list[Path]:
    mine = f"SLURM_CONF={lab.folder}/slurm.conf".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text() == "standby\n" and mine in (path / "environ").read_bytes().split(b"\0"):
                found.append(path)
        except OSError:  # the process has ended
            continue
    return found


def ready(process: Path) -> bool:
    """Whether only one thread is left: the thread of the imports has ended."""
    try:
        return all(b"low" not in name.read_bytes() for name in process.glob("task/*/comm"))
    except OSError:
        return False


SCENARIOS = (ranks_with_standby, ranks_without_standby, spare, fewer_nodes, batch_host)


LONG = {"ranks_without_standby", "fewer_nodes", "batch_host"}
"""Left out by CI, like the chaos: all scenarios together take ten minutes on two busy cores."""


def _named(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.chaos] if name in LONG else []) for name in names]
    )


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shards: Path,
    undisturbed: Future[RunResult],
) -> Iterator[dict[str, Future[RunResult]]]:
    """The runs of the selected tests; a test waits for its own run."""
    own = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    wanted = {item.callspec.params["name"] for item in own if hasattr(item, "callspec")}
    folder = tmp_path_factory.mktemp("in_allocation")
    with ThreadPoolExecutor(int(os.environ.get("LAB_CONCURRENT", "2"))) as pool:
        futures = {
            scenario.__name__: pool.submit(scenario, folder / scenario.__name__, shards)
            for scenario in SCENARIOS
            if scenario.__name__ in wanted
        }
        yield futures
    if file := os.environ.get("SURVIVAL_JSON"):
        costs = {name: [asdict(damage) for damage in result.result().damages] for name, result in futures.items()}
        Path(file).write_text(json.dumps(costs, indent=1))


@_named("ranks_with_standby", "ranks_without_standby", "spare", "batch_host")
def test_the_weights_are_bitwise_those_of_an_undisturbed_run(
    name: str, results: dict[str, Future[RunResult]], undisturbed: Future[RunResult]
) -> None:
    reference, result = undisturbed.result(), results[name].result()
    assert result.losses == reference.losses
    assert all(np.array_equal(result.tensors[key], value) for key, value in reference.tensors.items())


@_named("ranks_with_standby", "ranks_without_standby", "spare", "fewer_nodes")
def test_the_allocation_is_kept(name: str, results: dict[str, Future[RunResult]]) -> None:
    assert results[name].result().printed["restarts"] == "0"


@_named("spare")
def test_the_spare_has_taken_over(name: str, results: dict[str, Future[RunResult]]) -> None:
    assert "node3" in results[name].result().printed["nodes"].split()


@_named("fewer_nodes")
def test_fewer_nodes_train_on(name: str, results: dict[str, Future[RunResult]], undisturbed: Future[RunResult]) -> None:
    reference, result = undisturbed.result(), results[name].result()
    assert len(result.printed["nodes"].split()) == 1
    np.testing.assert_allclose(result.losses, reference.losses, rtol=1e-4)


@_named("batch_host")
def test_a_lost_batch_host_queues_the_job_again(name: str, results: dict[str, Future[RunResult]]) -> None:
    assert results[name].result().printed["restarts"] == "1"
