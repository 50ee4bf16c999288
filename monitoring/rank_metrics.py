"""Sink of one rank: turns events and metrics rows into the metric values that the node's exporter reads.

Rank 0 also keeps the metrics of the whole run. At its start it replays the event log, because some of these metrics
count over all attempts.
"""

import os
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from monitoring.metric_definitions import METRICS, RANK, RUN, STATES, STEP_BUCKETS
from monitoring.rank_snapshots import Snapshot
from motionmae.config import Config
from motionmae.planning.gpus import peak_of_device
from motionmae.runs.events import SOURCE_SAMPLES, Kind, Row, Sink
from motionmae.runs.history import AttemptTracker
from motionmae.text import get_logger

logger = get_logger(__name__)


class FlopsPerClip(NamedTuple):
    """FLOPs and tokens of one clip in a training step."""

    flops: int  # forward and backward pass of the model. A multiply-add counts as two.
    tokens: int  # cubes that pass through the encoder


def flops_per_clip_of(config: Config) -> FlopsPerClip:
    """Count the FLOPs and tokens of one clip in the task of ``config``, without a classifier's head (far below 1 %)."""
    from motionmae.models.masking import step_cubes  # imports torch
    from motionmae.planning.flops import step_flops

    tokens = config.clip.cubes if config.task == "finetune" else step_cubes(config).visible
    return FlopsPerClip(step_flops(config).model, tokens)


def peak_flops(config: Config) -> float | None:
    """Return the peak FLOP/s of this rank's device; None if unknown."""
    tflops: float | None = config.monitoring.peak_tflops
    torch = sys.modules.get("torch")
    if not tflops and torch and torch.cuda.is_initialized():
        tflops = peak_of_device(torch.cuda.get_device_name())
    return tflops * 1e12 if tflops else None


class RankMetrics(Sink):
    """Sink that writes a rank's snapshot at every event and metrics row. A failure is logged, and training continues.

    Args:
        folder: the node's snapshot folder.
        history: events of earlier attempts; empty on ranks other than 0.
        info: labels of run_info without world_size; empty on ranks other than 0.
    """

    def __init__(
        self,
        config: Config,
        rank: int,
        folder: Path,
        history: Iterable[Row],
        flops_per_clip: FlopsPerClip,
        info: dict[str, str],
    ) -> None:
        self._config, self._rank, self._folder, self._info = config, rank, folder, info
        self._flops_per_clip = flops_per_clip
        self._metrics = (*RUN, *RANK) if rank == 0 else RANK
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}
        self._histogram = [0] * (len(STEP_BUCKETS) + 1) if rank == 0 else []
        self._histogram_sum = 0.0
        self._tracker = AttemptTracker()
        self._attempt_id = ""
        self._world = 1
        self._warned = False
        for metric in self._metrics:
            if metric.kind == "counter":
                self._values |= {(metric.name, labels): 0.0 for labels in metric.combinations()}
        for row in history:
            self._guarded(row, self._take_event)
        self._set("dataloader_queue_capacity", config.data.prefetch)

    def event(self, row: Row) -> None:
        self._guarded(row, self._take_event, self._write)

    def metrics(self, row: Row) -> None:
        self._guarded(row, self._take_metrics, self._write)

    def _guarded(self, row: Row, *actions: Callable[[Row], None]) -> None:
        for action in actions:
            try:
                action(row)
            except Exception as error:
                if not self._warned:
                    logger.warning("metrics of rank %d are out of date (%s); training continues", self._rank, error)
                self._warned = True

    def _write(self, row: Row) -> None:
        samples = [
            (name, dict(zip(METRICS[name].label_names, labels, strict=True)), value)
            for (name, labels), value in self._values.items()
        ]
        steps = (self._histogram, self._histogram_sum)
        Snapshot(self._rank, os.getpid(), self._attempt_id, time.time(), samples, *steps).write(self._folder)

    def _take_event(self, row: Row) -> None:
        kind = row["kind"]
        self._tracker.add(row)
        if kind == Kind.START:
            self._attempt_id, self._world = row["attempt"], row["world"]
        elif kind == Kind.STOP and "OutOfMemoryError" in str(row.get("error")):
            self._add("cuda_ooms_total", 1)
        if self._rank == 0:
            self._copy(row)
            self._take_run_event(row)
            self._set_attempt_metrics()

    def _take_run_event(self, row: Row) -> None:
        kind = row["kind"]
        if kind == Kind.START:
            self._values = {key: value for key, value in self._values.items() if key[0] != "run_info"}
            labels = {**self._info, "world_size": str(self._world)}
            self._set("run_info", 1, *(labels[name] for name in METRICS["run_info"].label_names))
        elif kind == Kind.READY:
            self._set_progress(row["step"])
        elif kind == Kind.RESUME:
            self._set("checkpoint_duration_seconds", row["seconds"], "restore", "true")
            self._add("resumes_total", 1, row.get("source", "disk"))
        elif kind == Kind.CHECKPOINT:
            self._set("checkpoint_duration_seconds", row["blocking"], "save", "true")
            self._set("checkpoint_duration_seconds", max(row["seconds"] - row["blocking"], 0), "save", "false")
        elif kind == Kind.CHECKPOINT_FAILED:
            self._add("checkpoint_failures_total", 1)
        elif kind == Kind.VALIDATION:
            for by in METRICS["validation_accuracy_ratio"].values["by"]:
                if row.get(by) is not None:
                    self._set("validation_accuracy_ratio", row[by] / 100, by)
            if row.get("is_best"):
                self._set("validation_best_step", row["step"])
        elif kind == Kind.CORRUPT_SAMPLE:
            for reason, count in row["reasons"].items():
                self._set("corrupt_samples_total", count, reason)
        elif kind == Kind.NONFINITE:
            self._add("nonfinite_steps_total", 1, row["cause"])

    def _set_attempt_metrics(self) -> None:
        attempts = self._tracker.attempts
        if not attempts:
            return
        for state in STATES:
            self._set("run_state", float(state == attempts[-1].run_state), state)
        reasons = Counter(attempt.end.restart_reason if attempt.end else "lost" for attempt in attempts[:-1])
        for reason, count in reasons.items():
            self._set("restarts_total", count, reason)

    def _take_metrics(self, row: Row) -> None:
        self._copy(row)
        if self._rank > 0:
            return
        steps, seconds, clips_per_second = row["steps"], row["step_seconds"], row["clips_per_second"]
        self._set_progress(row["step"])
        for key, count in row.items():
            if key.startswith(SOURCE_SAMPLES):
                self._set("source_samples_total", count, key.removeprefix(SOURCE_SAMPLES))
        self._set("eta_seconds", (self._values["steps_target", ()] - row["step"]) * seconds)
        clips = steps * clips_per_second * seconds
        self._add("clips_total", clips)
        self._add("tokens_total", clips * self._flops_per_clip.tokens)
        self._add("flops_total", clips * self._flops_per_clip.flops)
        self._histogram[bisect_left(STEP_BUCKETS, seconds)] += steps
        self._histogram_sum += steps * seconds
        if peak := peak_flops(self._config):
            self._set("mfu_ratio", clips_per_second * self._flops_per_clip.flops / (peak * self._world))

    def _copy(self, row: Row) -> None:
        """Copy the values whose keys are in the metric definitions. A row has null instead of a non-finite number."""
        for metric in self._metrics:
            if metric.event != row.get("kind"):
                continue
            for key, labels in metric.row_keys.items():
                if key not in row:
                    continue
                value = float("nan") if row[key] is None else row[key]
                if metric.kind == "counter":
                    self._add(metric.name, row["steps"] * value, *labels)
                else:
                    self._set(metric.name, value, *labels)

    def _set_progress(self, step: int) -> None:
        target = self._values["steps_target", ()]
        self._set("step", step)
        self._set("progress_ratio", step / target if target else 0)

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._values[name, labels] = value

    def _add(self, name: str, value: float, *labels: str) -> None:
        self._values[name, labels] = self._values.get((name, labels), 0.0) + value
