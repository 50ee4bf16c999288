"""Every metric there is: the one source of the exporter, docs/metrics.md, and the checks of rules and dashboards.

Names are Prometheus's: base units, ratios from 0 to 1, counters end in _total. Never a label: a step, a path, the text
of an error, a job id (it stands in run_info alone). Labels that Prometheus adds by discovery: ``run``, ``instance``.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from monitoring.goodput import CAUSES
from motionmae.data.shards.errors import Reason
from motionmae.runs.end_reason import EndReason
from motionmae.runs.phases import Phase

PREFIX = "motionmae_"
STATES = tuple(dict.fromkeys(["starting", "training", *(reason.run_state for reason in EndReason)]))
"""States of a run. Exactly one is 1 at a time."""
_RESTART_REASONS = tuple(
    dict.fromkeys(reason.restart_reason for reason in EndReason if reason is not EndReason.FINISHED)
)
THROTTLE_REASONS = ("power_cap", "hardware", "thermal_hardware", "thermal_software", "power_brake")
STEP_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds; the client library's own end at 10."""


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    """Without the prefix."""
    kind: str
    """counter, gauge or histogram."""
    unit: str
    """seconds, bytes, ...; empty for a plain number."""
    help: str
    """One sentence."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Labels whose values are known; every combination exists from the start, at 0."""
    labels: tuple[str, ...] = ()
    """Labels whose values are found while running."""
    per_rank: bool = False
    """Has a label ``rank``, which the exporter adds."""

    @property
    def full_name(self) -> str:
        """As it is scraped."""
        return PREFIX + self.name

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels but ``rank``."""
        return (*self.values, *self.labels)

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """The values of its labels, where all are known; none for a metric with labels that are not."""
        return product(*self.values.values()) if not self.labels else iter(())


def _counter(name: str, text: str, unit: str = "", labels: tuple[str, ...] = (), **values: tuple[str, ...]) -> Metric:
    return Metric(name, "counter", unit, text, values, labels)


def _gauge(name: str, text: str, unit: str = "", labels: tuple[str, ...] = (), **values: tuple[str, ...]) -> Metric:
    return Metric(name, "gauge", unit, text, values, labels)


RUN = (
    _gauge("run_info", "Always 1; what the run is.", labels=("slurm_job_id", "git_sha", "world_size", "config_hash")),
    _gauge("run_state", "1 for the state that the run is in.", state=STATES),
    _gauge("step", "Steps taken."),
    _gauge("steps_target", "Steps that the run will take in all."),
    _gauge("epoch", "Epochs done."),
    _gauge("progress_ratio", "Share of the steps that is done.", "ratio"),
    _gauge("eta_seconds", "Time until the last step at the present pace.", "seconds"),
    _gauge("loss", "Loss of the last logged step, mean over all ranks.", component=("total", "space", "time")),
    _gauge("grad_norm", "Norm of the gradient of the last logged step, before clipping."),
    _gauge("learning_rate", "Learning rate of the next step."),
    _counter("nonfinite_steps_total", "Steps skipped because they were not finite.",
             kind=("loss", "gradient", "overflow")),
    _counter("clips_total", "Clips trained on by all ranks since this attempt began."),
    _counter("tokens_total", "Visible cubes that went through the encoder since this attempt began."),
    _counter("flops_total", "Floating-point operations of the model since this attempt began."),
    _gauge("mfu_ratio", "Model operations a second as a share of the devices' peak; absent where unknown.", "ratio"),
    Metric("step_duration_seconds", "histogram", "seconds", "Duration of steps, averaged over each logged interval."),
    _gauge(
        "checkpoint_duration_seconds",
        "Duration of the last save or restore, that which held up training and that in the background.",
        "seconds", op=("save", "restore"), blocking=("true", "false"),
    ),
    _gauge("checkpoint_last_success_timestamp_seconds", "When the last checkpoint was committed.", "seconds"),
    _gauge("checkpoint_last_step", "Step of the last checkpoint."),
    _gauge("checkpoint_size_bytes", "Size of the last checkpoint.", "bytes"),
    _counter("checkpoint_failures_total", "Checkpoints that could not be written."),
    _counter("restarts_total", "Times the run was started again, by how it had ended.", reason=_RESTART_REASONS),
    _counter("corrupt_samples_total", "Samples that could not be read and were replaced.",
             reason=tuple(reason.value for reason in Reason)),
    _gauge("productive_seconds", "Time spent on steps that counted, over all attempts.", "seconds"),
    _gauge("badput_seconds", "All other time since the run was first started or submitted.", "seconds", cause=CAUSES),
    _gauge("goodput_ratio", "Share of the time that was productive.", "ratio", queue=("included", "excluded")),
)  # fmt: skip
"""Of the run as a whole: told by rank 0, exposed by its node alone."""

RANK = tuple(replace(metric, per_rank=True) for metric in (
    _counter("phase_seconds_total", "Where the seconds of this rank went.", "seconds",
             phase=tuple(phase.value for phase in Phase)),
    _gauge("rank_step", "Steps that this rank has logged."),
    _gauge("last_step_timestamp_seconds", "When this rank last logged a step.", "seconds"),
    _gauge("snapshot_age_seconds", "Time since this rank last wrote its values for the exporter.", "seconds"),
    _gauge("rank_alive", "1 while the process of the rank exists."),
    _gauge("rank_resident_bytes", "Memory that the process of the rank holds.", "bytes"),
    _gauge("straggler_score", "Time until the end of the forward pass, relative to the median rank."),
    _gauge("dataloader_queue_depth", "Micro-batches that were ready when one was last asked for."),
    _gauge("dataloader_queue_capacity", "Micro-batches that are held ready at most."),
    _counter("cuda_ooms_total", "Times this rank ran out of GPU memory."),
))  # fmt: skip
"""Of each rank."""

NODE = (
    _gauge("node_info", "Always 1; the host name of the node.", labels=("node",)),
    _gauge("cpu_utilization_ratio", "Share of the node's processor time in use.", "ratio"),
    _gauge("memory_available_bytes", "Host memory that programs can still get.", "bytes"),
    _gauge("memory_total_bytes", "Host memory.", "bytes"),
    _gauge("disk_free_bytes", "Room left: runs is where the run folder lies, scratch the node's own disk.", "bytes",
           volume=("runs", "scratch")),
    _gauge("disk_size_bytes", "Size of the same file systems.", "bytes", volume=("runs", "scratch")),
)  # fmt: skip
"""Of each node."""

_GPU = ("gpu", "UUID")
GPU = (
    _gauge("gpu_utilization_ratio", "Share of time in which some kernel ran, a spinning NCCL included.", "ratio", _GPU),
    _gauge("gpu_memory_used_bytes", "Device memory in use.", "bytes", _GPU),
    _gauge("gpu_memory_total_bytes", "Device memory.", "bytes", _GPU),
    _gauge("gpu_power_watts", "Power drawn.", "watts", _GPU),
    _counter("gpu_energy_joules_total", "Energy drawn since the driver was loaded.", "joules", _GPU),
    _gauge("gpu_temperature_celsius", "Temperature.", "celsius", _GPU),
    _gauge("gpu_clock_hertz", "Clock.", "hertz", _GPU, type=("sm", "memory")),
    _counter("gpu_ecc_errors_total", "Memory errors since the driver was loaded.", "", _GPU,
             type=("corrected", "uncorrected")),
    _gauge("gpu_throttle_active", "1 while the clock is held down for this reason.", "", _GPU, reason=THROTTLE_REASONS),
    _counter("gpu_xid_events_total", "XID errors reported while the exporter ran.", labels=(*_GPU, "xid")),
)  # fmt: skip
"""Of each GPU, through NVML; what a device does not support is left out."""

GROUPS = {"The run": RUN, "Ranks": RANK, "Nodes": NODE, "GPUs": GPU}
METRICS = {metric.name: metric for group in GROUPS.values() for metric in group}


def markdown() -> str:
    """docs/metrics.md."""
    lines = ["# Metrics", "", "Generated: `python -m monitoring.metric_definitions > docs/metrics.md`. "
             "Prometheus adds `run` and `instance` (`RUN/NODE`), which stay the same over requeues.", ""]  # fmt: skip
    for title, group in GROUPS.items():
        lines += [f"## {title}", "", "| metric | type | unit | labels | what |", "|---|---|---|---|---|"]
        for metric in group:
            known = [f"{label}={', '.join(values)}" for label, values in metric.values.items()]
            labels = "; ".join([*["rank"] * metric.per_rank, *known, *metric.labels])
            lines.append(f"| `{metric.full_name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Print the page."""
    argparse.ArgumentParser(
        prog="python -m monitoring.metric_definitions", description="Print docs/metrics.md, the page of all metrics."
    ).parse_args()
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
