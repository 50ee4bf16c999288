"""Training runs on the lab, submitted as a person submits them, struck by fault after fault until they finish.

All runs go on side by side, since most of the time is waiting. Set SURVIVAL_JSON to a file's name to have the cost of
each fault written there; ``python -m tests.slurm_lab.table FILE`` makes the table of docs/survival.md of it.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.slurm_lab import faults
from tests.slurm_lab.faults import Damage, strike
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import CHECKPOINT_STEPS, RATE, SLOW_RATE, TrainingRun
from tests.training.shards import make_shards

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lab")]  # the latter for its verdict on this machine
TWO = ("--nodes", "2")


@dataclass
class Story:
    """What became of a run."""

    tensors: dict[str, np.ndarray]
    losses: list[float]
    damages: list[Damage]
    said: dict[str, str]
    """What commands printed along the way."""


def uninterrupted(folder: Path, shards: Path) -> Story:
    """The reference."""
    with Lab(nodes=2, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, *TWO)
        run.submit()
        return _end(run, [], {})


def asked_and_killed(folder: Path, shards: Path) -> Story:
    """Slurm asks for the nodes in every way it knows; then ranks are killed, twice on one node."""
    with Lab(nodes=3, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, *TWO)
        said = {"submit": run.submit()}
        said["twice"] = lab.run(*run.command, cwd=folder).stderr
        follower = subprocess.Popen(
            lab.on_head(*run.command, "--follow"), env=lab.environment(), cwd=folder, stdout=subprocess.PIPE, text=True
        )
        damages = []
        for fault in (faults.preempt, faults.requeue, faults.time_out):
            run.wait_for_steps(4)
            damages.append(strike(run, fault, ""))
        said["victim"] = run.nodes()[1]
        for fault in (faults.kill_rank, faults.kill_in_write):
            run.wait_for_steps(CHECKPOINT_STEPS + 2)
            damages.append(strike(run, fault, said["victim"]))
        said |= {"excluded": run.job()["ExcNodeList"], "nodes": " ".join(run.nodes())}
        run.wait_for_steps(2 * CHECKPOINT_STEPS + 2)  # two checkpoints, of which one is damaged
        damages.append(strike(run, faults.truncate, run.nodes()[1]))
        story = _end(run, damages, said)
        said["follow"], _ = follower.communicate(timeout=60)
        return story


def nodes_dead(folder: Path, shards: Path) -> Story:
    """One node is set down, then that of rank 0 loses power."""
    return _lose_nodes(folder, shards, (faults.set_down, 1), (faults.power_off, 0))


def nodes_silent(folder: Path, shards: Path) -> Story:
    """One node loses its slurmd, then that of rank 0 its cable; the ranks on them live on."""
    return _lose_nodes(folder, shards, (faults.kill_slurmd, 1), (faults.unplug, 0))


def split_brain(folder: Path, shards: Path) -> Story:
    """A node with the whole run on it is cut off, and both go on: the old ranks there, the new ones elsewhere."""
    with Lab(nodes=2, rate=SLOW_RATE) as lab:
        run = TrainingRun(lab, folder, shards, "--nodes", "1", "--ntasks-per-node", "2")
        run.submit()
        run.wait_for_steps(CHECKPOINT_STEPS + 2)
        return _end(run, [strike(run, faults.unplug, run.nodes()[0])], {})


def preempted_without_a_signal(folder: Path, shards: Path) -> Story:
    """On a site without preempt_send_user_signal."""
    with Lab(nodes=2, user_signal=False, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, *TWO)
        run.submit()
        run.wait_for_steps(4)
        return _end(run, [strike(run, faults.preempt, "")], {})


def elastic(folder: Path, shards: Path) -> Story:
    """Stopped and submitted again with another number of nodes: 4, 2, 3."""
    with Lab(nodes=4, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards)
        said, damages = {}, []
        run.submit("--nodes", "4")
        for number, words in ((2, ("--nodes", "2")), (3, ("--nodes", "3", "engine.micro_batch_size=4"))):
            run.wait_for_steps(4)
            before = run.attempts()
            lab.run("scancel", run.record.job_id)
            lab.wait_for_job(run.record.job_id, ("CANCELLED",), 60)
            if number == 3:
                said["indivisible"] = lab.run(*run.command, "--nodes", "3", cwd=folder).stderr
            run.submit(*words)
            damages.append(faults.aftermath(run, f"stopped, submitted on {number} nodes", time.time(), before))
        return _end(run, damages, said)


def _lose_nodes(folder: Path, shards: Path, *strikes: tuple[Callable[[TrainingRun, str], None], int]) -> Story:
    with Lab(nodes=4, rate=SLOW_RATE) as lab:
        run = TrainingRun(lab, folder, shards, *TWO)
        run.submit()
        damages = []
        for fault, rank in strikes:
            run.wait_for_steps(CHECKPOINT_STEPS + 2)
            damages.append(strike(run, fault, run.nodes()[rank]))
        return _end(run, damages, {"log": Path(run.record.log).read_text()})


def _end(run: TrainingRun, damages: list[Damage], said: dict[str, str]) -> Story:
    run.finish()
    return Story(run.tensors(), run.losses(), damages, said)


STORIES: tuple[Callable[[Path, Path], Story], ...] = (
    uninterrupted,
    asked_and_killed,
    nodes_silent,
    nodes_dead,
    split_brain,
    elastic,
    preempted_without_a_signal,
)
AT_ONCE = 4
"""Runs under way at a time; each has two to four ranks, and starting a rank takes seconds of a core."""


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, step_jobs: object) -> Iterator[dict[str, Future[Story]]]:
    """All runs, under way side by side; a test waits for the one it is about."""
    folder = tmp_path_factory.mktemp("survival")
    shards = make_shards(folder / "shards", samples=12)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = {story.__name__: pool.submit(story, folder / story.__name__, shards) for story in STORIES}
        yield told
    if file := os.environ.get("SURVIVAL_JSON"):
        costs = {name: [asdict(damage) for damage in story.result().damages] for name, story in told.items()}
        Path(file).write_text(json.dumps(costs, indent=1))


@pytest.mark.parametrize("name", [s.__name__ for s in STORIES if s not in (elastic, uninterrupted)])
def test_the_weights_are_bitwise_those_of_an_uninterrupted_run(name: str, stories: dict[str, Future[Story]]) -> None:
    reference, story = stories["uninterrupted"].result(), stories[name].result()
    assert story.losses == reference.losses
    assert story.tensors.keys() == reference.tensors.keys()
    assert all(np.array_equal(story.tensors[key], value) for key, value in reference.tensors.items())


def test_another_number_of_nodes_gives_the_same_weights_within_rounding(stories: dict[str, Future[Story]]) -> None:
    reference, story = stories["uninterrupted"].result(), stories["elastic"].result()
    np.testing.assert_allclose(story.losses, reference.losses, rtol=1e-4)
    for key in (key for key in reference.tensors if key.startswith("model")):
        np.testing.assert_allclose(story.tensors[key], reference.tensors[key], atol=1e-4, err_msg=key)
    assert all(damage.lost == 0 for damage in story.damages)
    assert (
        "optim.global_batch_size=12 is not divisible by engine.micro_batch_size=3 x 3 ranks: set engine"
        in story.said["indivisible"]
    )


def test_what_signals_loses_nothing_and_a_kill_at_most_an_interval(stories: dict[str, Future[Story]]) -> None:
    told = {"asked_and_killed": 3, "preempted_without_a_signal": 1}
    for name, asked in told.items():
        assert [damage.lost for damage in stories[name].result().damages[:asked]] == [0] * asked
    killed = stories["asked_and_killed"].result().damages[3:]
    limits = {faults.kill_in_write: 2, faults.kill_rank: 1, faults.truncate: 2}
    for fault, intervals in limits.items():
        (damage,) = (found for found in killed if found.fault == faults.NAMES[fault])
        assert 0 <= damage.lost <= intervals * CHECKPOINT_STEPS
        if fault is faults.kill_in_write:  # what was being written does not count
            assert damage.lost >= CHECKPOINT_STEPS


def test_a_node_that_failed_twice_is_left_out(stories: dict[str, Future[Story]]) -> None:
    said = stories["asked_and_killed"].result().said
    assert said["excluded"] == said["victim"]
    assert said["victim"] not in said["nodes"].split()


def test_a_lost_node_is_named(stories: dict[str, Future[Story]]) -> None:
    for name in ("nodes_dead", "nodes_silent"):
        log = stories[name].result().said["log"]
        assert log.count(" of the previous attempt is down (") == 2


def test_a_run_under_way_is_followed_and_not_submitted_twice(stories: dict[str, Future[Story]]) -> None:
    said = stories["asked_and_killed"].result().said
    assert "job        1 (slurm)" in said["submit"]
    assert "is already submitted as slurm job 1" in said["twice"]
    for text in ("following job 1; nothing new is submitted", "a rank was killed (node ", "-- job 1: COMPLETED"):
        assert text in said["follow"]
