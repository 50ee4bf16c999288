"""``checkpoint.every_steps=auto``, by hand and in real runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from motionmae.checkpointing.async_checkpointer import SaveResult
from motionmae.config import Config, EngineConfig
from motionmae.distributed.process_group import distributed
from motionmae.planning import checkpoint_interval
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import read_rows
from motionmae.training import save_interval
from motionmae.training.save_interval import SaveInterval
from motionmae.training.setup import run_training
from tests.monitoring.runs import history_of, metrics_row
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run


def train_with_bounds(configs: list[Config], first: int, shortest: float) -> list[str]:
    """Run attempts with a smaller first interval and a smaller lower bound, in seconds."""
    save_interval.FIRST_STEPS, checkpoint_interval.SHORTEST_SECONDS = first, shortest
    return [run_training(config).name for config in configs]


def saves_of(config: Config) -> list[int]:
    rows = read_rows(RunFolder(config.run_folder).events)
    return [row["step"] for row in rows if row["kind"] == "checkpoint"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def test_the_last_five_saves_decide(tmp_path: Path):
    """Half a second a step. The interval is at least twice the median time of a save: 400 steps for 100 s.

    For short saves it is Daly's: a node of RSC-1 fails every 13,292,308 s, and sqrt(2 x 0.1 x 13,292,308) = 1630.5 s,
    from which the stall of 0.1 s is subtracted.
    """
    history = history_of(tmp_path / "run", rows=[metrics_row(10, steps=10)])
    saves = [(100.0, 0.001)] * 5 + [(300.0, 0.001)] * 5 + [(1.0, 0.1)] * 3  # seconds, and those that stop training
    with distributed(EngineConfig(device="cpu")) as rank:
        interval = SaveInterval("auto", 0, 1, rank, history)
        for steps, (seconds, blocking) in zip([400] * 7 + [1200] * 5 + [3261], saves, strict=True):
            interval.add(SaveResult(0, None, "", waited=0.0, blocking=blocking, seconds=seconds))
            interval.begin(0)  # no later step, so that the time of a step stays that of the history
            assert (interval.steps, interval.is_due(steps - 1), interval.is_due(steps)) == (steps, False, True)


def test_a_fixed_interval_saves_at_its_multiples(tmp_path: Path):
    nothing: Any = None
    interval = SaveInterval(4, 6, 1, nothing, nothing)
    assert [step for step in range(1, 13) if interval.is_due(step)] == [4, 8, 12]
    interval.begin(9)
    assert (interval.steps, interval.is_due(12), interval.is_due(13)) == (4, True, False)


def test_steps_are_timed_from_one_save_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two seconds a step from step 10 to 40; twice the 300 s of a save are then 300 steps, and 600 s at one second."""
    clock = SimpleNamespace(now=50.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(save_interval, "time", clock)
    with distributed(EngineConfig(device="cpu")) as rank:
        interval = SaveInterval("auto", 10, 1, rank, history_of(tmp_path / "run", rows=[]))
        assert (interval.steps, interval.is_due(109), interval.is_due(110)) == (100, False, True)
        interval.add(SaveResult(0, None, "", waited=0.0, blocking=0.001, seconds=300.0))
        clock.now += 60.0
        interval.begin(40)
        assert (interval.steps, interval.is_due(339), interval.is_due(340)) == (300, False, True)
        clock.now += 25.0
        interval.begin(65)
        assert (interval.steps, interval.is_due(664), interval.is_due(665)) == (600, False, True)


def test_the_interval_is_chosen_after_the_first_saves(shards: Path, tmp_path: Path):
    """60 steps of milliseconds: from the second save on, an interval of a minute ends only with the run."""
    config = tiny_run(shards, tmp_path, optim={"epochs": 20}, checkpoint={"every_steps": "auto"})
    assert run_ranks(2, train_with_bounds, [config], 5, 60.0) == [["FINISHED"]] * 2
    assert saves_of(config) == [5, 10, 60]


def test_a_resumed_run_knows_its_times_at_once(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, optim={"epochs": 20}, checkpoint={"every_steps": "auto"})
    folder = RunFolder(config.run_folder)
    folder.create()
    (folder.path / "stop").touch()
    assert run_ranks(1, train_with_bounds, [config], 5, 60.0) == [["STOPPED"]]  # a save of which nothing is measured
    assert run_ranks(1, train_with_bounds, [config], 5, 60.0) == [["FINISHED"]]
    assert saves_of(config) == [1, 6, 11, 60]
    again = config.updated({"name": "again"})
    events, metrics = (path.read_text() for path in (folder.events, folder.metrics))
    RunFolder(again.run_folder).create()
    RunFolder(again.run_folder).events.write_text(events.replace('"finish"', '"picture"'))
    RunFolder(again.run_folder).metrics.write_text(metrics)
    folder.lease.rename(RunFolder(again.run_folder).lease)
    before = len(saves_of(again))
    assert run_ranks(1, train_with_bounds, [again], 5, 60.0) == [["FINISHED"]]
    assert saves_of(again)[before:] == [60]
