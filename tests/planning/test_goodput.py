"""Predicted goodput and the interval of checkpoints, against published figures and formulas."""

import json
import math
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.planning.checkpoint_interval import (
    PUBLISHED_RATES,
    interval_steps,
    mean_time_between_failures,
    optimal_interval,
)
from motionmae.planning.goodput import Conditions, _Run, predict_goodput
from motionmae.planning.run_times import RunTimes, measure_times
from motionmae.runs.history import RunHistory
from tests.planning.chaos_goodput import TOLERANCE, compare

HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize(("mtbf_hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_the_interval_is_that_of_dalys_figures(mtbf_hours: float, minutes: float):
    """The captions of his figures 3 to 5: dumps of 5 minutes."""
    assert optimal_interval(300, mtbf_hours * HOUR) / 60 == pytest.approx(minutes, abs=0.5)


def test_the_published_rates_give_the_published_times_between_failures():
    """RSC-1: 1.8 h on 16,384 GPUs. Llama 3: 419 interruptions in 54 days."""
    rsc1 = mean_time_between_failures(2048, PUBLISHED_RATES["rsc1"].per_1000_node_days)
    assert rsc1 / HOUR == pytest.approx(1.8, abs=0.01)
    llama3 = mean_time_between_failures(2048, PUBLISHED_RATES["llama3"].per_1000_node_days)
    assert 54 * DAY / llama3 == pytest.approx(419)


def test_the_runs_own_failures_correct_the_rate():
    times = RunTimes(step=1.0, failures=9, seconds_in_training=10 * DAY)
    assert mean_time_between_failures(8, 1000 / 8 / 2, times) == pytest.approx(12 * DAY / 10)  # prior: 2 days


@pytest.mark.parametrize("nodes", [256, 512, 1024])
def test_the_simulation_agrees_with_the_published_formula(nodes: int):
    """Kokolis et al. 2025: E[ETTR] = (1 - N r (u + dt / 2)) / (1 + w / dt), with restart time u and write time w.

    The formula is an approximation for small losses.
    """
    restart, interval, stall, rate = 300.0, 1800.0, 20.0, 6.5e-3 / DAY
    times = RunTimes(step=1.0, stall=stall, save=0.0, restart=restart, failure_pause=0.0)
    conditions = Conditions(seconds=30 * DAY, mtbf=1 / (nodes * rate), every_steps=int(interval))
    published = (1 - nodes * rate * (restart + interval / 2)) / (1 + stall / interval)
    predicted = predict_goodput(times, conditions, runs=60)
    assert predicted.productive == pytest.approx(published, abs=0.012)
    assert predicted.lost_steps == pytest.approx(interval / 2, rel=0.12)
    assert predicted.productive + sum(predicted.badput.values()) == pytest.approx(1)


def test_memory_copies_lose_half_their_interval_and_cost_their_stall():
    times = RunTimes(step=1.0, stall=1.0, save=10.0, copy_stall=0.1, restart=10.0, failure_pause=0.0)
    plain = Conditions(seconds=30 * DAY, mtbf=2 * HOUR, every_steps=1000)
    copied = Conditions(seconds=30 * DAY, mtbf=2 * HOUR, every_steps=1000, memory_every_steps=20)
    before, after = predict_goodput(times, plain, 40), predict_goodput(times, copied, 40)
    assert before.lost_steps == pytest.approx(510, rel=0.1)  # a checkpoint counts 10 s after its step
    assert after.lost_steps == pytest.approx(10, rel=0.1)
    gain = (500 - 10) / (2 * HOUR) - 0.1 / 20
    assert after.productive - before.productive == pytest.approx(gain, abs=0.006)


def test_a_time_limit_costs_a_save_a_restart_and_the_queue():
    times = RunTimes(step=1.0, waste=0.25, stall=0.0, save=50.0, restart=100.0, queue=850.0)
    conditions = Conditions(seconds=50 * 5000.0, mtbf=math.inf, every_steps=10**9, time_limit=4100.0)
    predicted = predict_goodput(times, conditions, runs=2)
    assert predicted.productive == pytest.approx(4000 * 0.8 / 5000, abs=1e-3)
    assert predicted.badput["queue_wait"] == pytest.approx(850 / 5000)
    assert predicted.badput["checkpoint_blocking"] == pytest.approx(50 / 5000)
    assert predicted.badput["init"] == pytest.approx(100 / 5000)
    assert predicted.lowest == predicted.highest


def test_no_interval_is_better_than_the_chosen_one():
    """Held against the simulation, which knows nothing of Daly's formula."""
    times = RunTimes(step=1.0, stall=10.0, save=12.0, restart=60.0, failure_pause=0.0)
    mtbf = 2 * HOUR
    chosen = interval_steps(times, mtbf)
    assert chosen == pytest.approx(math.sqrt(2 * 10 * mtbf), rel=0.03)

    def productive(steps: int) -> float:
        return predict_goodput(times, Conditions(30 * DAY, mtbf, steps), runs=100).productive

    best = productive(chosen)
    for factor in (0.25, 0.5, 2, 4):
        assert productive(int(factor * chosen)) < best + 0.001, factor
    assert productive(4 * chosen) < best - 0.02


def test_the_interval_has_bounds():
    rare = 1000 * DAY
    assert interval_steps(RunTimes(step=0.5, stall=1.0, save=10.0), rare) == 7200  # an hour
    assert interval_steps(RunTimes(step=0.5, stall=0.001, save=1.0), 600.0) == 120  # a minute
    assert interval_steps(RunTimes(step=0.5, stall=0.001, save=100.0), 600.0) == 400  # two writes
    assert interval_steps(RunTimes(step=7000.0), rare) == 1


def write_history(folder: Path) -> None:
    """A run that is killed after 40 steps and preempted after 60; a save each 20 steps. All clocks by hand."""
    folder.mkdir(parents=True)
    events, metrics = [], []

    def attempt(name: str, start: float, first: int, last: int, reason: str) -> None:
        started, ready = start + 4, start + 10
        events.append({"kind": "start", "step": 0, "world": 2, "hosts": ["a"], "age": 4.0, "time": started})
        events.append({"kind": "ready", "step": first, "total_steps": 100, "time": ready})
        for step in range(first + 10, last + 1, 10):
            metrics.append(
                {
                    "step": step, "steps": 10, "epoch": 0.5, "clips_per_second": 1.0, "step_seconds": 2.0,
                    "data_wait_seconds": 0.25, "other_seconds": 0.05, "time": ready + 2 * (step - first),
                }
            )  # fmt: skip
            if step % 20 == 0:
                seconds = {"blocking": 0.5, "seconds": 6.0}
                if step == last:  # the save before the stop blocks for all of its time
                    seconds["blocking"] = 6.0
                events.append({"kind": "checkpoint", "step": step, **seconds, "time": ready + 2 * (step - first)})
        if reason:
            events.append({"kind": "stop", "step": last, "reason": reason, "time": ready + 2 * (last - first)})
        for row in (*events, *metrics):
            row.setdefault("attempt", name)

    attempt("a", 1000.0, 0, 50, "")  # its last sign: 1110
    attempt("b", 1130.0, 40, 80, "preempted")  # 1220
    attempt("c", 1520.0, 80, 90, "")
    for name, rows in (("events.jsonl", events), ("metrics.jsonl", metrics)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_times_are_measured_in_the_history(tmp_path: Path):
    write_history(tmp_path / "run")
    times = measure_times(RunHistory(tmp_path / "run"), RunTimes(step=9.0, copy_stall=0.125))
    assert (times.step, times.waste) == (pytest.approx(1.7), pytest.approx(0.3))
    assert (times.stall, times.save) == (0.5, 6.0)
    assert times.copy_stall == 0.125  # assumed
    assert times.restart == 10.0
    assert (times.failure_pause, times.queue) == (20.0, 300.0)
    assert (times.failures, times.interruptions) == (1, 1)
    assert times.seconds_in_training == 100 + 80 + 20


def test_plan_predicts_the_goodput_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_history(tmp_path / "run")
    flags = ["--goodput", "--days", "10", "--history", str(tmp_path / "run"), "--json", str(tmp_path / "plan.json")]
    assert main(["plan", "--config", "demo", "launch.gpus_per_node=0", *flags]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "times, measured in" in out
    assert "failures: 6.5 per 1000 node-days" in out
    assert "arxiv.org/abs/2410.21680" in out
    assert "host memory a node" in out
    goodput = json.loads((tmp_path / "plan.json").read_text())["goodput"]
    assert goodput["times"]["queue"] == 300.0
    predicted = goodput["predicted"]
    assert predicted["productive"] + sum(predicted["badput"].values()) == pytest.approx(1)
    assert 0.3 < predicted["productive"] < 0.85  # a step is productive for 85 % of its time


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--failures", "often"], "--failures often is not possible: give a number of at least 0, or one of rsc1"),
        (["--days", "0"], "--days must be a positive, finite number"),
        (["--history", "/nowhere"], "/nowhere has no events.jsonl"),
        ([], "nothing tells how long a step takes: give --step-seconds, --gpu, or --history"),
        (["--preemptions", "-1"], "--preemptions must be at least 0"),
    ],
)
def test_plan_says_what_it_cannot_predict(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = ["plan", "--config", "demo", "launch.gpus_per_node=0", f"output_dir={tmp_path}"]
    assert main([*run, "--goodput", *flags]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_run_without_failures_is_productive_between_its_saves(tmp_path: Path):
    run = ["plan", "--config", "demo", "launch.gpus_per_node=0", f"output_dir={tmp_path}"]
    flags = ["--goodput", "--failures", "0", "--step-seconds", "1", "--json", str(tmp_path / "plan.json")]
    assert main([*run, *flags, "launch.time=100000"]) == 0
    goodput = json.loads((tmp_path / "plan.json").read_text())["goodput"]
    assert goodput["predicted"]["failures"] == 0
    assert goodput["best_every_steps"] is None
    assert goodput["predicted"]["productive"] > 0.99


def test_the_prediction_is_within_three_points_of_a_chaos_run():
    """Rows of `python -m tests.slurm_lab.chaos --seed 5 --faults 8` on a busy machine: 192 steps in 9 attempts."""
    measured, predicted = compare(Path(__file__).parent / "chaos_history", every_steps=5, memory_every_steps=2)
    assert measured == pytest.approx(0.1526, abs=1e-4)
    assert predicted.productive == pytest.approx(measured, abs=TOLERANCE)
    assert predicted.lowest < measured < predicted.highest


class Drawn:
    """Random numbers that the test has written."""

    def __init__(self, *times: float, survives: float = 0.0) -> None:
        self.times, self.survives, self.rates = list(times), survives, list[float]()

    def expovariate(self, rate: float) -> float:
        self.rates.append(rate)
        return self.times.pop(0) if self.times else math.inf

    def random(self) -> float:
        return self.survives


def simulated(times: RunTimes, conditions: Conditions, draw: Drawn) -> _Run:
    run = _Run(times, conditions, draw).simulate()  # type: ignore[arg-type]
    assert sum(run.spent.values()) == pytest.approx(conditions.seconds)
    return run


TIMES = RunTimes(step=1.0, waste=0.25, stall=1.0, save=20.0, restart=60.0, failure_pause=30.0, queue=600.0)


def test_one_failure_worked_by_hand():
    """After 60 s of starting it trains for 200 s, with a save of 1 s after 10 steps of 1.25 s: 1.35 s a step.

    148 steps fit; 8 of them came after the last save, which was half written, so that the 10 before are lost too.
    """
    conditions = Conditions(seconds=1000.0, mtbf=500.0, every_steps=10, first_queue=40.0)
    draw = Drawn(200.0)
    run = simulated(TIMES, conditions, draw)
    assert (run.failures, run.lost_steps) == (1, 18)
    assert draw.rates[0] == 1 / 500
    second = int((1000 - 40 - 60 - 200 - 30 - 60) / 1.35)
    assert run.step == 148 - 18 + second
    assert run.spent["productive"] == run.step
    assert run.spent["data_wait"] == pytest.approx(0.25 * run.step)
    assert run.spent["lost_work"] == 18 * 1.25
    assert run.spent["checkpoint_blocking"] == pytest.approx(0.1 * (148 + second))
    assert (run.spent["init"], run.spent["downtime"], run.spent["queue_wait"]) == (120, 30, 40)
    assert run.spent["other"] == pytest.approx(200 - 148 * 1.35 + (620 - 30 - second * 1.35) + 20)


@pytest.mark.parametrize(("survives", "lost"), [(0.59, 1), (0.6, 18)])
def test_a_memory_copy_that_survives_loses_less(survives: float, lost: int):
    times = RunTimes(step=1.25, stall=1.0, save=20.0, copy_stall=0.0, restart=60.0)
    conditions = Conditions(seconds=260.0, mtbf=500.0, every_steps=10, memory_every_steps=7, memory_survives=0.6)
    run = simulated(times, conditions, Drawn(200.0, survives=survives))
    assert (run.failures, run.lost_steps) == (1, lost)  # of 148 steps; 148 = 21 x 7 + 1


def test_a_copy_stalls_the_training():
    times = RunTimes(step=1.0, stall=0.0, copy_stall=0.5, restart=0.0)
    conditions = Conditions(seconds=150.0, mtbf=math.inf, every_steps=100, memory_every_steps=10)
    run = simulated(times, conditions, Drawn())
    assert run.step == 142  # 1.05 s each
    assert run.spent["checkpoint_blocking"] == pytest.approx(142 * 0.05)


def test_an_interruption_saves_and_waits_in_the_queue():
    conditions = Conditions(seconds=2000.0, mtbf=math.inf, every_steps=10**9, interruptions_a_day=8.0)
    draw = Drawn(500.0)
    run = simulated(TIMES, conditions, draw)
    assert draw.rates[0] == 8 / 86_400
    assert (run.failures, run.lost_steps) == (0, 0)
    assert run.spent["queue_wait"] == 600
    assert run.spent["init"] == 120
    assert run.spent["checkpoint_blocking"] == pytest.approx(20, abs=1e-3)


def test_a_failure_early_in_an_attempt_loses_only_its_steps():
    conditions = Conditions(seconds=500.0, mtbf=500.0, every_steps=1000)
    run = simulated(
        RunTimes(step=1.0, stall=0.0, save=5.0, restart=0.0, failure_pause=0.0), conditions, Drawn(3.5, 7.5)
    )
    assert (run.failures, run.lost_steps) == (2, 3 + 7)


def test_figures_are_means_over_the_runs():
    found = predict_goodput(TIMES, Conditions(seconds=DAY, mtbf=HOUR, every_steps=100), runs=30, seed=3)
    again = predict_goodput(TIMES, Conditions(seconds=DAY, mtbf=HOUR, every_steps=100), runs=30, seed=3)
    other = predict_goodput(TIMES, Conditions(seconds=DAY, mtbf=HOUR, every_steps=100), runs=30, seed=4)
    assert found == again != other
    assert found.productive + sum(found.badput.values()) == pytest.approx(1)
    assert list(found.badput) == [
        "queue_wait", "init", "data_wait", "checkpoint_blocking", "lost_work", "downtime", "other",
    ]  # fmt: skip
    assert found.lowest < found.productive < found.highest
    assert found.failures == pytest.approx(24 * found.productive * 1.4, rel=0.35)
    alone = predict_goodput(TIMES, Conditions(seconds=DAY, mtbf=HOUR, every_steps=100), runs=1)
    assert alone.lowest == alone.highest == alone.productive
