"""Training runs in the lab, submitted with slurm/submit.py, which suffer several faults until they finish.

The runs are concurrent, because they mostly wait. If the variable SURVIVAL_JSON names a file, the costs of the faults
are written there; ``python -m tests.slurm_lab.table FILE`` turns them into the table of docs/measurements/faults.md.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.slurm_lab import faults
from tests.slurm_lab.faults import Damage, strike
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import CHECKPOINT_STEPS, NO_STANDBY, RATE, SLOW_RATE, RunResult, TrainingRun, finish

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lab")]  # the fixture skips if this machine cannot run a lab
TWO = ("--nodes", "2")


def signalled_and_killed(folder: Path, shards: Path) -> RunResult:
    """Slurm signals the run in every way; then ranks are killed, twice on one node."""
    with Lab(nodes=3, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, *TWO, NO_STANDBY)
        printed = {"submit": run.submit()}
        printed["twice"] = lab.run(*run.command, cwd=folder).stderr
        follower = subprocess.Popen(
            lab.on_head(*run.command, "--follow"), env=lab.environment(), cwd=folder, stdout=subprocess.PIPE, text=True
        )
        damages = []
        for fault in (faults.preempt, faults.requeue, faults.time_out):
            run.wait_for_steps(4)
            damages.append(_strike_slowly(run, fault, "") if fault is faults.time_out else strike(run, fault, ""))
        printed["victim"] = run.nodes()[1]
        for fault in (faults.kill_rank, faults.kill_in_write):
            run.wait_for_steps(CHECKPOINT_STEPS + 2)
            damages.append(strike(run, fault, printed["victim"]))
        printed |= {"excluded": run.job()["ExcNodeList"], "nodes": " ".join(run.nodes())}
        run.wait_for_steps(2 * CHECKPOINT_STEPS + 2)  # two checkpoints, of which one is damaged
        damages.append(strike(run, faults.truncate, run.nodes()[1]))
        result = finish(run, damages, printed)
        printed["follow"], _ = follower.communicate(timeout=300)
        return result


def nodes_lost(folder: Path, shards: Path) -> RunResult:
    """Preempted on a site without preempt_send_user_signal; then nodes are lost in every way.

    One node is set down, the node of rank 0 loses power, one node loses its slurmd, and the node of rank 0 its cable.
    Ranks survive the last two.
    """
    with Lab(nodes=4, user_signal=False, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, *TWO, NO_STANDBY)
        run.submit()
        run.wait_for_steps(4)
        damages = [strike(run, faults.preempt, "")]
        for fault, rank in ((faults.set_down, 1), (faults.power_off, 0), (faults.kill_slurmd, 1), (faults.unplug, 0)):
            run.wait_for_steps(CHECKPOINT_STEPS + 2)
            damages.append(_strike_slowly(run, fault, run.nodes()[rank]))
        return finish(run, damages, {"log": Path(run.record.log).read_text()})


def split_brain(folder: Path, shards: Path) -> RunResult:
    """The only node of the run is cut off. The old ranks continue there, and new ranks start on another node."""
    with Lab(nodes=2, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, "--nodes", "1", "--ntasks-per-node", "2", NO_STANDBY)
        run.submit()
        run.wait_for_steps(CHECKPOINT_STEPS + 2)
        return finish(run, [_strike_slowly(run, faults.unplug, run.nodes()[0])], {})


def elastic(folder: Path, shards: Path) -> RunResult:
    """Stopped and submitted again with another number of nodes: 4, 2, 3."""
    with Lab(nodes=4, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, NO_STANDBY)
        printed, damages = {}, []
        run.submit("--nodes", "4")
        for number, argv in ((2, ("--nodes", "2")), (3, ("--nodes", "3", "engine.micro_batch_size=4"))):
            run.wait_for_steps(4)
            lab.change_rate(SLOW_RATE)
            before = run.attempts()
            printed[f"runs before {number} nodes"] = _list_runs(run)
            lab.run("scancel", run.record.job_id)
            lab.wait_for_job(run.record.job_id, ("CANCELLED",), 60)
            printed[f"runs stopped for {number} nodes"] = _list_runs(run)
            if number == 3:
                printed["indivisible"] = lab.run(*run.command, "--nodes", "3", cwd=folder).stderr
            run.submit(*argv)
            damages.append(faults.aftermath(run, f"stopped, submitted on {number} nodes", time.time(), before))
            lab.change_rate(RATE)
        return finish(run, damages, printed)


def _list_runs(run: TrainingRun) -> str:
    return run.lab.run(sys.executable, "-m", "motionmae", "runs", "runs", "--json", "-", cwd=run.folder).stdout


def _strike_slowly(run: TrainingRun, fault: Callable[[TrainingRun, str], None], node: str) -> Damage:
    """Strike with a fault that Slurm takes long to notice, and slow down the steps meanwhile."""
    run.lab.change_rate(SLOW_RATE)
    damage = strike(run, fault, node)
    run.lab.change_rate(RATE)
    return damage


SCENARIOS = (nodes_lost, signalled_and_killed, split_brain, elastic)
"""The one that takes longest comes first."""


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, undisturbed: Future[RunResult], step_jobs: object
) -> Iterator[dict[str, Future[RunResult]]]:
    """All runs, started concurrently. A test waits for its own run."""
    folder = tmp_path_factory.mktemp("survival")
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        futures = {
            scenario.__name__: pool.submit(scenario, folder / scenario.__name__, shards) for scenario in SCENARIOS
        }
        yield futures
    if file := os.environ.get("SURVIVAL_JSON"):
        costs = {name: [asdict(damage) for damage in result.result().damages] for name, result in futures.items()}
        Path(file).write_text(json.dumps(costs, indent=1))


@pytest.mark.parametrize("name", [s.__name__ for s in SCENARIOS if s is not elastic])
def test_the_weights_are_bitwise_those_of_an_uninterrupted_run(
    name: str, results: dict[str, Future[RunResult]], undisturbed: Future[RunResult]
) -> None:
    reference, result = undisturbed.result(), results[name].result()
    assert result.losses == reference.losses
    assert result.tensors.keys() == reference.tensors.keys()
    assert all(np.array_equal(result.tensors[key], value) for key, value in reference.tensors.items())


def test_another_number_of_nodes_gives_the_same_weights_within_rounding(
    results: dict[str, Future[RunResult]], undisturbed: Future[RunResult]
) -> None:
    reference, result = undisturbed.result(), results["elastic"].result()
    np.testing.assert_allclose(result.losses, reference.losses, rtol=1e-4)
    for key in (key for key in reference.tensors if key.startswith("model")):
        np.testing.assert_allclose(result.tensors[key], reference.tensors[key], atol=1e-4, err_msg=key)
    assert all(damage.lost == 0 for damage in result.damages)
    assert (
        "optim.global_batch_size=12 is not divisible by engine.micro_batch_size=3 x 3 ranks: set engine"
        in result.printed["indivisible"]
    )


def test_a_signal_loses_no_step_and_a_kill_at_most_an_interval(results: dict[str, Future[RunResult]]) -> None:
    signals = {"signalled_and_killed": 3, "nodes_lost": 1}
    for name, number in signals.items():
        assert [damage.lost for damage in results[name].result().damages[:number]] == [0] * number
    killed = results["signalled_and_killed"].result().damages[3:]
    limits = {faults.kill_in_write: 2, faults.kill_rank: 1, faults.truncate: 2}
    for fault, intervals in limits.items():
        (damage,) = (found for found in killed if found.fault == faults.NAMES[fault])
        assert 0 <= damage.lost <= intervals * CHECKPOINT_STEPS
        if fault is faults.kill_in_write:  # the unfinished checkpoint does not count
            assert damage.lost >= CHECKPOINT_STEPS


def test_a_node_that_failed_twice_is_left_out(results: dict[str, Future[RunResult]]) -> None:
    printed = results["signalled_and_killed"].result().printed
    assert printed["excluded"] == printed["victim"]
    assert printed["victim"] not in printed["nodes"].split()


def test_a_lost_node_is_named(results: dict[str, Future[RunResult]]) -> None:
    log = results["nodes_lost"].result().printed["log"]
    assert log.count(" of the previous attempt is down (") == 4


def test_an_active_run_is_followed_and_not_submitted_twice(results: dict[str, Future[RunResult]]) -> None:
    printed = results["signalled_and_killed"].result().printed
    assert "job        1 (slurm)" in printed["submit"]
    assert "is already submitted as slurm job 1" in printed["twice"]
    for text in ("following job 1; nothing new is submitted", "a rank was killed (node ", "-- job 1: COMPLETED"):
        assert text in printed["follow"]


def test_the_table_of_runs_follows_slurm(results: dict[str, Future[RunResult]]) -> None:
    printed = results["elastic"].result().printed
    for job, nodes, next_nodes in (("1", 4, 2), ("2", 2, 3)):
        (trains,) = json.loads(printed[f"runs before {next_nodes} nodes"])
        (stopped,) = json.loads(printed[f"runs stopped for {next_nodes} nodes"])
        assert (trains["name"], trains["state"], trains["job"]) == ("demo", "training", job)
        assert trains["hosts"] == [f"node{number}" for number in range(1, nodes + 1)]
        assert trains["step"] >= 4
        assert trains["eta_seconds"] > 0
        assert (stopped["state"], stopped["eta_seconds"]) == ("stopped", None)
