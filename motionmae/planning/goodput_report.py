"""Report of a predicted goodput: where its numbers come from, the shares of the time, and the best interval."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.planning.checkpoint_interval import (
    PUBLISHED_RATES,
    SECONDS_A_DAY,
    FailureRate,
    interval_steps,
    mean_time_between_failures,
)
from motionmae.planning.goodput import Conditions, PredictedGoodput, predict_goodput
from motionmae.planning.memory import predict_checkpoint_memory
from motionmae.planning.run_times import RunTimes, measure_times
from motionmae.runs.directory import RunFolder
from motionmae.runs.formatting import duration
from motionmae.runs.history import RunHistory
from motionmae.screen import Table, show
from motionmae.text import say

_HOST_COPY, _DISK = 5e9, 1e9
"""Assumed bytes a second: from a device to host memory, a rank; to the disk, the whole run."""
_TITLES = {
    "productive": "productive", "queue_wait": "waiting in the queue", "init": "starting", "data_wait":
    "waiting for data, metrics", "checkpoint_blocking": "saving", "lost_work": "work done again", "downtime": "down",
    "other": "other",
}  # fmt: skip


@dataclass(frozen=True)
class GoodputOptions:
    """What the user asks."""

    days: float
    failures: str  # number per 1000 node-days, or name of a published rate
    preemptions: float | None  # per day; None takes those of the history
    history: Path  # run folder, which may be absent
    step: float | None  # estimated seconds of a step; None if it is unknown


def report_goodput(config: Config, options: GoodputOptions, given_step: float | None = None) -> dict[str, Any]:
    """Print the predicted goodput and return its figures.

    Args:
        given_step: seconds of a step that replace the measured ones.

    Raises:
        UserError: a rate is wrong, or nothing tells how long a step takes.
    """
    rate = _failure_rate(options.failures)
    times, has_history = _times(config, options, given_step)
    mtbf, best = math.inf, None
    if rate.per_1000_node_days:
        mtbf = mean_time_between_failures(config.launch.nodes, rate.per_1000_node_days, times)
        best = interval_steps(times, mtbf)
    configured = config.checkpoint.every_steps
    every = configured if configured != "auto" else best or 10**9
    preemptions = options.preemptions
    if preemptions is None:
        in_training = times.seconds_in_training / SECONDS_A_DAY
        preemptions = times.interruptions / in_training if in_training else 0.0
    conditions = Conditions(
        seconds=options.days * SECONDS_A_DAY, mtbf=mtbf, every_steps=every,
        memory_every_steps=config.checkpoint.memory_steps, interruptions_a_day=preemptions,
        time_limit=60.0 * config.launch.time, first_queue=times.queue,
    )  # fmt: skip
    predicted = predict_goodput(times, conditions)
    _show(config, options, predicted)
    source = f"measured in {options.history}" if has_history else "assumed (give --history RUN to measure them)"
    say(_times_text(times, source))
    own = f", corrected by the run's own {times.failures} failures" if has_history else ""
    say(f"failures: {rate.per_1000_node_days:.3g} per 1000 node-days, {rate.source}{own}: one in {_duration(mtbf)}")
    if best is not None:
        whole = times.step_whole
        say(
            f"checkpoint.every_steps={configured}: one in {_duration(every * whole)}; auto would choose {best}, "
            f"one in {_duration(best * whole)}"
        )
    return {
        "times": asdict(times), "measured": has_history, "mtbf_seconds": mtbf if math.isfinite(mtbf) else None,
        "conditions": asdict(replace(conditions, mtbf=min(mtbf, 1e12))), "predicted": asdict(predicted),
        "best_every_steps": best,
    }  # fmt: skip


def _failure_rate(text: str) -> FailureRate:
    if text in PUBLISHED_RATES:
        return PUBLISHED_RATES[text]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        names = ", ".join(PUBLISHED_RATES)
        raise UserError(f"--failures {text} is not possible: give a number of at least 0, or one of {names}")
    return FailureRate(value, "given")


def _times(config: Config, options: GoodputOptions, given_step: float | None) -> tuple[RunTimes, bool]:
    """Return the times of a run, and whether they were measured."""
    state = predict_checkpoint_memory(config).staging_once * config.launch.nodes
    stall = state / (config.launch.nodes * config.launch.ntasks_per_node) / _HOST_COPY
    save = stall + state / _DISK
    times, measured = RunTimes(step=options.step or math.nan, stall=stall, copy_stall=stall, save=save), False
    if RunFolder(options.history).events.is_file():
        times, measured = measure_times(RunHistory(options.history), times), True
    if given_step is not None:
        times = replace(times, step=given_step, waste=0.0)
    if not times.step > 0:
        raise UserError(
            "nothing tells how long a step takes: give --step-seconds, --gpu, or --history of a run with metrics"
        )
    return times, measured


def _show(config: Config, options: GoodputOptions, predicted: PredictedGoodput) -> None:
    nodes = config.launch.nodes
    title = f"{config.name}: goodput of {nodes} nodes in {options.days:g} days"
    table = Table(title=title, title_justify="left")
    for heading in ("time", "share", "days"):
        table.add_column(heading, justify="left" if heading == "time" else "right")
    shares = {"productive": predicted.productive, **predicted.badput}
    for name, share in shares.items():
        table.add_row(_TITLES[name], f"{share:.1%}", f"{share * options.days:.2f}")
    show(table)
    say(
        f"nine of ten runs are between {predicted.lowest:.1%} and {predicted.highest:.1%}; {predicted.failures:.1f} "
        f"failures, each loses {predicted.lost_steps:.0f} steps"
    )


def _times_text(times: RunTimes, source: str) -> str:
    return (
        f"times, {source}: step {times.step_whole:.3g} s, save {times.save:.3g} s of which {times.stall:.2g} s stop "
        f"the training, memory copy {times.copy_stall:.2g} s, start {times.restart:.3g} s, pause after a failure "
        f"{times.failure_pause:.3g} s, queue {times.queue:.3g} s"
    )


def _duration(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else "never"
