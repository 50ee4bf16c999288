"""Definitions of all metrics. The exporter, docs/reference/metrics.md and the checks of rules and dashboards use them.

To export a number that training writes to metrics.jsonl, add one definition with the number's key in ``row_keys``. No
other change is needed.

Names follow Prometheus: base units, ratios from 0 to 1, counters end in _total. A label never holds a step, a path, an
error text or a job id (run_info alone has the job id). Prometheus adds the labels ``run`` and ``instance``.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from monitoring.goodput import CATEGORIES
from motionmae.data.shards.errors import Reason
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Phase
from motionmae.text import LINES, say

PREFIX = "motionmae_"
STATES = tuple(dict.fromkeys(["starting", "training", *(reason.run_state for reason in EndReason)]))
"""States of a run. Exactly one is 1 at a time."""
_RESTART_REASONS = tuple(
    dict.fromkeys(reason.restart_reason for reason in EndReason if reason is not EndReason.FINISHED)
)
THROTTLE_REASONS = ("power_cap", "hardware", "thermal_hardware", "thermal_software", "power_brake")
STEP_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds. The client library's default buckets end at 10."""

RowKeys = Mapping[str, tuple[str, ...]]
"""Keys of a row, each with the label values of the sample that takes the key's value."""


@dataclass(frozen=True)
class Metric:
    """Definition of one metric."""

    name: str  # name without the prefix
    kind: str  # counter, gauge or histogram
    unit: str  # seconds, bytes, ...; empty for a plain number
    help: str  # one sentence
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Labels with known values. Every combination exists from the start, at 0."""
    labels: tuple[str, ...] = ()  # labels whose values are found at run time
    per_rank: bool = False  # the exporter adds a label `rank`
    row_keys: RowKeys = field(default_factory=dict)
    """Keys that :class:`monitoring.rank_metrics.RankMetrics` copies. A counter adds the value times the row's steps."""
    event: Kind | None = None  # the event that has `row_keys`; None for rows of metrics.jsonl

    @property
    def full_name(self) -> str:
        """Name in Prometheus."""
        return PREFIX + self.name

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels except ``rank``."""
        return (*self.values, *self.labels)

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """Return all combinations of label values; none for a metric with ``labels``."""
        return product(*self.values.values()) if not self.labels else iter(())


def _metric(
    kind: str,
    /,
    name: str,
    text: str,
    unit: str = "",
    labels: tuple[str, ...] = (),
    row: str | RowKeys = "",
    event: Kind | None = None,
    **values: tuple[str, ...],
) -> Metric:
    """Return a definition. ``row`` is the row key of a metric without labels, or ``row_keys``."""
    if isinstance(row, str):
        row = {row: ()} if row else {}
    return Metric(name, kind, unit, text, values, labels, row_keys=row, event=event)


_counter, _gauge = partial(_metric, "counter"), partial(_metric, "gauge")

RUN = (
    _gauge("run_info", "Always 1; labels describe the run.",
           labels=("slurm_job_id", "git_sha", "world_size", "config_hash")),
    _gauge("run_state", "1 for the current state of the run.", state=STATES),
    _gauge("step", "Steps taken.", row="step"),
    _gauge("steps_target", "Total steps of the run.", row="total_steps", event=Kind.READY),
    _gauge("epoch", "Epochs done.", row="epoch"),
    _gauge("progress_ratio", "Share of the steps that is done.", "ratio"),
    _gauge("eta_seconds", "Time until the last step at the current pace.", "seconds"),
    _gauge("loss", "Loss of the last logged step, mean over all ranks.", component=("total", "space", "time"),
           row={"loss": ("total",), "loss_space": ("space",), "loss_time": ("time",)}),
    _gauge("validation_loss", "Loss on held-out videos at the last validation, mean over all ranks.",
           component=("total", "space", "time"), event=Kind.VALIDATION,
           row={"loss": ("total",), "loss_space": ("space",), "loss_time": ("time",)}),
    _gauge("validation_accuracy_ratio", "Accuracy on held-out videos at the last validation: of a classifier (top1, "
           "top5), or of the nearest training videos on frozen features (knn).", "ratio",
           by=("top1", "top5", "knn")),
    _gauge("validation_explained_ratio", "Explained variance of a decoder head on held-out clips.", "ratio",
           head=("space", "time"), event=Kind.VALIDATION,
           row={"explained_space": ("space",), "explained_time": ("time",)}),
    _gauge("validation_last_step", "Step of the last validation.", row="step", event=Kind.VALIDATION),
    _gauge("validation_best_step", "Step of the best validation, whose checkpoint is kept."),
    _gauge("validation_duration_seconds", "Duration of the last validation.", "seconds", row="seconds",
           event=Kind.VALIDATION),
    _gauge("grad_norm", "Norm of the gradient of the last logged step, before clipping.", row="grad_norm"),
    _gauge("learning_rate", "Learning rate of the next step.", row="lr"),
    _counter("nonfinite_steps_total", "Steps skipped because they were not finite.",
             kind=("loss", "gradient", "overflow")),
    _counter("clips_total", "Clips trained on by all ranks since this attempt began."),
    _counter("source_samples_total", "Samples drawn from each source of a mixture since the run began.",
             labels=("source",)),
    _counter("tokens_total", "Visible cubes encoded since this attempt began."),
    _counter("flops_total", "Floating-point operations of the model since this attempt began."),
    _gauge("mfu_ratio", "Model FLOP/s as a share of the devices' peak; absent if the peak is unknown.", "ratio"),
    _metric("histogram", "step_duration_seconds", "Duration of steps, averaged over each logged interval.", "seconds"),
    _gauge("checkpoint_duration_seconds", "Duration of the last save or restore, in the training loop (blocking) and "
           "in the background.", "seconds", op=("save", "restore"), blocking=("true", "false")),
    _gauge("checkpoint_last_success_timestamp_seconds", "Time of the last committed checkpoint.", "seconds",
           row="time", event=Kind.CHECKPOINT),
    _gauge("checkpoint_last_step", "Step of the last checkpoint.", row="step", event=Kind.CHECKPOINT),
    _gauge("checkpoint_size_bytes", "Size of the last checkpoint.", "bytes", row="bytes", event=Kind.CHECKPOINT),
    _gauge("memory_copy_last_step", "Step of the last complete copy of the state in the memory of the nodes.",
           row="memory_copy_step"),
    _counter("resumes_total", "Starts of the run from a state in memory or on disk.", source=("memory", "disk")),
    _counter("checkpoint_failures_total", "Checkpoints that could not be written."),
    _counter("restarts_total", "Restarts of the run by the end of the attempt before.", reason=_RESTART_REASONS),
    _counter("corrupt_samples_total", "Samples that could not be read and were replaced.",
             reason=tuple(reason.value for reason in Reason)),
    _gauge("productive_seconds", "Time spent on steps that counted, over all attempts.", "seconds"),
    _gauge("badput_seconds", "All other time since the run was first started or submitted.", "seconds",
           cause=tuple(CATEGORIES)),
    _gauge("goodput_ratio", "Share of the time that was productive.", "ratio", queue=("included", "excluded")),
)  # fmt: skip
"""Metrics of the run as a whole, which rank 0 writes and only its node exposes."""

RANK = tuple(replace(metric, per_rank=True) for metric in (
    _counter("phase_seconds_total", "Seconds of this rank by phase of a step.", "seconds",
             phase=tuple(phase.value for phase in Phase),
             row={f"{phase.value}_seconds": (phase.value,) for phase in Phase}),
    _gauge("rank_step", "Last step that this rank logged.", row="step"),
    _gauge("last_step_timestamp_seconds", "Time at which this rank last logged a step.", "seconds", row="time"),
    _gauge("snapshot_age_seconds", "Time since this rank last wrote its values for the exporter.", "seconds"),
    _gauge("rank_alive", "1 while the process of the rank exists."),
    _gauge("rank_resident_bytes", "Resident memory of the rank's process.", "bytes"),
    _gauge("straggler_score", "Time until the end of the forward pass, relative to the median rank.",
           row="straggler_score"),
    _gauge("dataloader_queue_depth", "Micro-batches that were ready at the last request.", row="loader_ready"),
    _gauge("dataloader_queue_capacity", "Maximum number of prefetched micro-batches."),
    _counter("cuda_ooms_total", "Times this rank ran out of GPU memory."),
))  # fmt: skip
"""Metrics of each rank."""

NODE = (
    _gauge("node_info", "Always 1; the host name of the node.", labels=("node",)),
    _gauge("cpu_utilization_ratio", "Share of the node's processor time in use.", "ratio"),
    _gauge("memory_available_bytes", "Host memory available to programs.", "bytes"),
    _gauge("memory_total_bytes", "Host memory.", "bytes"),
    _gauge("disk_free_bytes", "Free space on the file system of the run folder (runs) and of /tmp (scratch).",
           "bytes", volume=("runs", "scratch")),
    _gauge("disk_size_bytes", "Size of the same file systems.", "bytes", volume=("runs", "scratch")),
)  # fmt: skip
"""Metrics of each node."""

_GPU = ("gpu", "UUID")
GPU = (
    _gauge("gpu_utilization_ratio", "Share of time in which a kernel ran, waiting NCCL kernels included.", "ratio",
           _GPU),
    _gauge("gpu_memory_used_bytes", "Device memory in use.", "bytes", _GPU),
    _gauge("gpu_memory_total_bytes", "Device memory.", "bytes", _GPU),
    _gauge("gpu_power_watts", "Power draw.", "watts", _GPU),
    _counter("gpu_energy_joules_total", "Energy used since the driver was loaded.", "joules", _GPU),
    _gauge("gpu_temperature_celsius", "Temperature.", "celsius", _GPU),
    _gauge("gpu_clock_hertz", "Clock.", "hertz", _GPU, type=("sm", "memory")),
    _counter("gpu_ecc_errors_total", "Memory errors since the driver was loaded.", "", _GPU,
             type=("corrected", "uncorrected")),
    _gauge("gpu_throttle_active", "1 while the clock is reduced for this reason.", "", _GPU, reason=THROTTLE_REASONS),
    _counter("gpu_xid_events_total", "XID errors reported while the exporter ran.", labels=(*_GPU, "xid")),
)  # fmt: skip
"""Metrics of each GPU, through NVML. Values that a device does not support are left out."""

GROUPS = {"The run": RUN, "Ranks": RANK, "Nodes": NODE, "GPUs": GPU}
METRICS = {metric.name: metric for group in GROUPS.values() for metric in group}


def markdown() -> str:
    """Return the text of docs/reference/metrics.md."""
    lines = [
        "# Metrics", "", "Generated: `python -m monitoring.metric_definitions > docs/reference/metrics.md`.", "",
        "Prometheus adds `run` and `instance` (`RUN/NODE`), which stay the same after a requeue.", "",
    ]  # fmt: skip
    for title, group in GROUPS.items():
        lines += [f"## {title}", "", "| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
        for metric in group:
            known = [f"{label}={', '.join(values)}" for label, values in metric.values.items()]
            labels = "; ".join([*["rank"] * metric.per_rank, *known, *metric.labels])
            lines.append(f"| `{metric.full_name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Print the text of docs/reference/metrics.md, made from the definitions."""
    argparse.ArgumentParser(
        prog="python -m monitoring.metric_definitions",
        description="Print docs/reference/metrics.md, the list of all metrics.",
    ).parse_args()
    say(markdown(), keep=LINES, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
