"""The sink of one rank: what training announces becomes the values that the node's exporter reads.

Rank 0 also keeps the values of the run as a whole. Those that count over all attempts it takes from the event log,
which it replays when it starts.
"""

import logging
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path

from monitoring.flops_per_clip import FlopsPerClip, peak_flops
from monitoring.metric_definitions import METRICS, RUN, STATES, STEP_BUCKETS
from monitoring.rank_snapshots import Snapshot
from motionmae.config import Config
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row
from motionmae.runs.phases import Phase

logger = logging.getLogger(__name__)

_Key = tuple[str, tuple[str, ...]]


class RankMetrics:
    """Writes a rank's snapshot at every event and metrics row. Whatever fails here, training never hears of it.

    Args:
        config: of the run.
        rank: of this process.
        folder: the node's snapshot folder.
        history: events of earlier attempts; rank 0's affair.
        work: what a clip takes.
        info: labels of run_info but world_size; rank 0's affair.
    """

    def __init__(
        self, config: Config, rank: int, folder: Path, history: Iterable[Row], work: FlopsPerClip, info: dict[str, str]
    ) -> None:
        self._config, self._rank, self._folder, self._work, self._info = config, rank, folder, work, info
        self._values: dict[_Key, float] = {}
        self._histogram = [0] * (len(STEP_BUCKETS) + 1) if rank == 0 else []
        self._histogram_sum = 0.0
        self._incarnation = ""
        self._before = ""
        self._finished = False
        self._step = 0
        self._world = 1
        self._warned = False
        for metric in METRICS.values():
            if metric.kind == "counter" and (metric.per_rank or (rank == 0 and metric in RUN)):
                self._values |= {(metric.name, labels): 0.0 for labels in metric.combinations()}
        for row in history:
            self._guarded(self._take_event, row)
        self._set("dataloader_queue_capacity", config.data.prefetch)

    def event(self, row: Row) -> None:
        """Take an event."""
        self._guarded(self._take_event, row)
        self._guarded(self._write, row)

    def metrics(self, row: Row) -> None:
        """Take a metrics row."""
        self._guarded(self._take_metrics, row)
        self._guarded(self._write, row)

    def close(self) -> None:
        """Nothing is held."""

    def _guarded(self, action: Callable[[Row], None], row: Row) -> None:
        try:
            action(row)
        except Exception as error:
            if not self._warned:
                logger.warning("metrics of rank %d are not up to date (%s); training goes on", self._rank, error)
            self._warned = True

    def _write(self, row: Row) -> None:
        samples = [
            (name, dict(zip(METRICS[name].label_names, labels, strict=True)), value)
            for (name, labels), value in self._values.items()
        ]
        Snapshot(
            self._rank, os.getpid(), self._incarnation, time.time(), samples, self._histogram, self._histogram_sum
        ).write(self._folder)

    def _take_event(self, row: Row) -> None:
        kind = row["kind"]
        if kind == Kind.START.value:
            self._start(row)
        elif kind == Kind.STOP.value and "OutOfMemoryError" in str(row.get("error")):
            self._add("cuda_ooms_total", 1)
        if self._rank == 0:
            self._take_run_event(kind, row)

    def _start(self, row: Row) -> None:
        self._world = row["world"]
        if self._rank == 0 and self._incarnation and not self._finished:
            self._add("restarts_total", 1, self._before or "lost")
        self._incarnation, self._before = row["attempt"], ""
        if self._rank == 0:
            self._drop("run_info")
            labels = {**self._info, "world_size": str(self._world)}
            self._set("run_info", 1, *(labels[name] for name in METRICS["run_info"].label_names))
            self._be("starting")

    def _take_run_event(self, kind: str, row: Row) -> None:
        if kind == Kind.READY.value:
            self._step = row["step"]
            self._set("steps_target", row["total_steps"])
            self._progress(row["step"])
            self._be("training")
        elif kind == Kind.RESUME.value:
            self._set("checkpoint_duration_seconds", row["seconds"], "restore", "true")
        elif kind == Kind.CHECKPOINT.value:
            self._set("checkpoint_duration_seconds", row["blocking"], "save", "true")
            self._set("checkpoint_duration_seconds", max(row["seconds"] - row["blocking"], 0), "save", "false")
            self._set("checkpoint_last_success_timestamp_seconds", row["time"])
            self._set("checkpoint_last_step", row["step"])
            self._set("checkpoint_size_bytes", row["bytes"])
        elif kind == Kind.CHECKPOINT_FAILED.value:
            self._add("checkpoint_failures_total", 1)
        elif kind == Kind.CORRUPT_SAMPLE.value:
            for reason, count in row["reasons"].items():
                self._set("corrupt_samples_total", count, reason)
        elif kind == Kind.NONFINITE.value:
            self._add("nonfinite_steps_total", 1, row["cause"])
        elif kind == Kind.STOP.value:
            reason = EndReason(row["reason"])
            self._before = reason.restart_reason
            self._be(reason.run_state)
        elif kind == Kind.FINISH.value:
            self._finished = True  # whoever starts it again finds nothing left to do, which is no restart
            self._be("finished")

    def _take_metrics(self, row: Row) -> None:
        steps = row["steps"]
        for phase in Phase:
            self._add("phase_seconds_total", steps * row[f"{phase.value}_seconds"], phase.value)
        self._set("rank_step", row["step"])
        self._set("last_step_timestamp_seconds", row["time"])
        self._set("straggler_score", row["straggler_score"])
        self._set("dataloader_queue_depth", row["loader_ready"])
        if self._rank == 0:
            self._take_run_metrics(row, steps)

    def _take_run_metrics(self, row: Row, steps: int) -> None:
        for name, component in (("loss", "total"), ("loss_space", "space"), ("loss_time", "time")):
            if name in row:
                self._set("loss", _number(row[name]), component)
        self._set("grad_norm", _number(row["grad_norm"]))
        self._set("learning_rate", row["lr"])
        self._set("epoch", row["epoch"])
        self._progress(row["step"])
        seconds = row["step_seconds"]
        target = self._values["steps_target", ()]
        self._set("eta_seconds", (target - row["step"]) * seconds)
        clips = row["clips_per_second"] * seconds
        self._add("clips_total", steps * clips)
        self._add("tokens_total", steps * clips * self._work.tokens)
        self._add("flops_total", steps * clips * self._work.flops)
        self._histogram[bisect_left(STEP_BUCKETS, seconds)] += steps
        self._histogram_sum += steps * seconds
        peak = peak_flops(self._config)
        if peak:
            self._set("mfu_ratio", row["clips_per_second"] * self._work.flops / (peak * self._world))

    def _progress(self, step: int) -> None:
        target = self._values["steps_target", ()]
        self._set("step", step)
        self._set("progress_ratio", step / target if target else 0)

    def _be(self, state: str) -> None:
        for each in STATES:
            self._set("run_state", float(each == state), each)

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._values[name, labels] = value

    def _add(self, name: str, value: float, *labels: str) -> None:
        self._values[name, labels] = self._values.get((name, labels), 0.0) + value

    def _drop(self, name: str) -> None:
        self._values = {key: value for key, value in self._values.items() if key[0] != name}


def _number(value: float | None) -> float:
    """Rows have null where a number was not finite."""
    return float("nan") if value is None else value
