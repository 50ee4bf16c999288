"""The report of a predicted goodput: which figures go into the simulation, and what is printed of them."""

import math
from pathlib import Path
from typing import Any

import pytest

from motionmae.config import Config, load_config
from motionmae.errors import UserError
from motionmae.planning import goodput_report
from motionmae.planning.goodput import Conditions, PredictedGoodput
from motionmae.planning.goodput_report import GoodputOptions, report_goodput
from motionmae.planning.memory import predict_checkpoint_memory
from motionmae.planning.run_times import RunTimes
from tests.planning.test_goodput import write_history

DAY = 86_400.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunTimes, Conditions]]:
    """What the simulation was asked, in place of an answer that takes a second."""
    found: list[tuple[RunTimes, Conditions]] = []

    def predict(times: RunTimes, conditions: Conditions) -> PredictedGoodput:
        found.append((times, conditions))
        names = ("queue_wait", "init", "data_wait", "checkpoint_blocking", "lost_work", "downtime", "other")
        return PredictedGoodput(0.65, dict.fromkeys(names, 0.05), 0.5, 0.75, 3.25, 12.4)

    monkeypatch.setattr(goodput_report, "predict_goodput", predict)
    monkeypatch.setenv("COLUMNS", "200")
    return found


def config_of(*changes: str) -> Config:
    return load_config("demo", ["launch.gpus_per_node=0", "launch.ntasks_per_node=2", "optim.global_batch_size=64",
                                "engine.micro_batch_size=8", *changes])  # fmt: skip


def options(folder: Path, **values: Any) -> GoodputOptions:
    defaults = {"days": 10.0, "failures": "6.5", "preemptions": None, "history": folder / "none", "step": 2.0}
    return GoodputOptions(**{**defaults, **values})


def test_a_run_without_a_history_has_assumed_times(
    tmp_path: Path, asked: list[tuple[RunTimes, Conditions]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(
        "launch.nodes=2", "launch.time=90", "checkpoint.every_steps=50", "checkpoint.memory_every_steps=7"
    )
    figures = report_goodput(config, options(tmp_path))
    ((times, conditions),) = asked
    state = 2 * predict_checkpoint_memory(config).staging_once
    assert times.stall == times.copy_stall == pytest.approx(state / 4 / 5e9)  # of four ranks, at 5 GB/s each
    assert times.save == pytest.approx(times.stall + state / 1e9)  # and at 1 GB/s to the disk
    assert times.step == 2.0
    mtbf = DAY * 1000 / (2 * 6.5)
    assert conditions == Conditions(
        seconds=10 * DAY, mtbf=pytest.approx((mtbf + 0) / 1), every_steps=50, memory_every_steps=7,
        interruptions_a_day=0.0, time_limit=5400.0, first_queue=600.0,
    )  # fmt: skip
    assert (figures["measured"], figures["mtbf_seconds"]) == (False, pytest.approx(mtbf))
    out = capsys.readouterr().out
    for text in (
        "demo: goodput of 2 nodes in 10 days", "65.0%", "6.50", "5.0%", "0.50", "waiting in the queue",
        "nine of ten runs are between 50.0% and 75.0%; 3.2 failures, each loses 12 steps",
        "times, assumed (give --history RUN to measure them): step 2 s",
        "failures: 6.5 per 1000 node-days, given: one in ",
        "checkpoint.every_steps=50: one in 1 min 40 s; auto would choose ",
    ):  # fmt: skip
        assert text in out


def test_a_history_gives_times_failures_and_preemptions(
    tmp_path: Path, asked: list[tuple[RunTimes, Conditions]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_history(tmp_path / "run")
    figures = report_goodput(config_of("launch.nodes=1"), options(tmp_path, history=tmp_path / "run"))
    ((times, conditions),) = asked
    assert times.queue == conditions.first_queue == 300.0
    assert conditions.mtbf == pytest.approx((DAY * 1000 / 6.5 + 200) / 2)  # one failure in 200 s beside the prior
    assert conditions.interruptions_a_day == pytest.approx(1 / (200 / DAY))
    assert figures["measured"]
    out = capsys.readouterr().out
    assert f"times, measured in {tmp_path}/run" in out
    assert "corrected by the run's own 1 failures" in out
    report_goodput(config_of(), options(tmp_path, history=tmp_path / "run", preemptions=2.5), given_step=4.0)
    times, conditions = asked[-1]
    assert (times.step, times.waste, conditions.interruptions_a_day) == (4.0, 0.0, 2.5)


@pytest.mark.parametrize("every", ["auto", "50"])
def test_without_failures_there_is_no_best_interval(
    tmp_path: Path, asked: list[tuple[RunTimes, Conditions]], capsys: pytest.CaptureFixture[str], every: str
) -> None:
    figures = report_goodput(config_of(f"checkpoint.every_steps={every}"), options(tmp_path, failures="0"))
    ((_, conditions),) = asked
    assert conditions.mtbf == math.inf
    assert conditions.every_steps == (10**9 if every == "auto" else 50)
    assert (figures["mtbf_seconds"], figures["best_every_steps"]) == (None, None)
    assert figures["conditions"]["mtbf"] == 1e12
    out = capsys.readouterr().out
    assert "one in never" in out
    assert "auto would choose" not in out


def test_the_best_interval_is_taken_where_it_is_left_to_the_run(
    tmp_path: Path, asked: list[tuple[RunTimes, Conditions]]
) -> None:
    figures = report_goodput(config_of("checkpoint.every_steps=auto"), options(tmp_path))
    assert asked[0][1].every_steps == figures["best_every_steps"] > 1


@pytest.mark.parametrize(
    ("text", "rate", "source"), [("rsc2", 2.34, "RSC-2"), ("0", 0.0, "given"), ("1e-3", 0.001, "given")]
)
def test_a_rate_is_a_number_or_a_name(text: str, rate: float, source: str) -> None:
    found = goodput_report._failure_rate(text)
    assert found.per_1000_node_days == rate
    assert source in found.source


@pytest.mark.parametrize("text", ["-1", "inf", "nan", "rsc3", ""])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give a number of at least 0, or one of rsc1, rsc2, llama3"):
        goodput_report._failure_rate(text)


@pytest.mark.parametrize(("step", "given"), [(None, None), (0.0, None), (2.0, 0.0)])
def test_a_step_takes_time(tmp_path: Path, step: float | None, given: float | None) -> None:
    with pytest.raises(UserError, match="nothing tells how long a step takes"):
        report_goodput(config_of(), options(tmp_path, step=step), given)
