"""The Grafana dashboards of monitoring/grafana: ``python -m monitoring.dashboards`` writes them anew."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("grafana")
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_RUN = 'run="$run"'
_STEPS = "motionmae_step_duration_seconds"
_GPU = "{{instance}} GPU {{gpu}}"


@dataclass(frozen=True)
class Query:
    """A curve, or a family of curves."""

    expression: str
    legend: str = ""
    """Name of the curve, with {{label}}s."""


@dataclass(frozen=True)
class Panel:
    """A rectangle with curves or a number in it."""

    title: str
    unit: str
    """As Grafana names it: s, bytes, percentunit, short, ..."""
    queries: Sequence[Query]
    kind: str = "timeseries"
    """timeseries, stat, table or piechart."""
    width: int = 8
    """Of 24 columns."""
    stacked: bool = False
    description: str = ""

    def as_json(self, number: int, x: int, y: int, height: int) -> dict[str, Any]:
        """Grafana's own form."""
        custom = (
            {"fillOpacity": 60, "stacking": {"mode": "normal"}, "lineWidth": 0} if self.stacked else {"lineWidth": 1}
        )
        defaults: dict[str, Any] = {"unit": self.unit}
        if self.kind == "timeseries":
            defaults["custom"] = custom
        return {
            "id": number,
            "title": self.title,
            "description": self.description,
            "type": self.kind,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _DATASOURCE,
                    "expr": query.expression,
                    "legendFormat": query.legend,
                    "instant": self.kind != "timeseries",
                    **({"format": "table"} if self.kind == "table" else {}),
                }
                for index, query in enumerate(self.queries)
            ],
        }


@dataclass(frozen=True)
class Row:
    """Panels beside each other, under a heading."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


@dataclass(frozen=True)
class Dashboard:
    """A page."""

    uid: str
    title: str
    rows: Sequence[Row]
    one_run: bool
    """Has a variable ``run``."""

    def as_json(self) -> dict[str, Any]:
        """Grafana's own form."""
        panels: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
            panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
            y += 1
            x = 0
            for panel in row.panels:
                if x + panel.width > _COLUMNS:
                    x, y = 0, y + row.height
                panels.append(panel.as_json(len(panels) + 1, x, y, row.height))
                x += panel.width
            y += row.height
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["motionmae"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "templating": {"list": _variables(self.one_run)},
            "panels": panels,
        }


def _variables(one_run: bool) -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    run = {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": "label_values(motionmae_run_info, run)",
        "refresh": 2,
        "sort": 1,
    }
    return [source, run] if one_run else [source]


def _of(metric: str, legend: str = "", **labels: str) -> list[Query]:
    """A metric of the run that is chosen."""
    selector = ",".join([_RUN, *(f'{label}="{value}"' for label, value in labels.items())])
    return [Query(f"{metric}{{{selector}}}", legend)]


def _one(expression: str, legend: str = "") -> list[Query]:
    return [Query(expression, legend)]


RUN = Dashboard(
    "motionmae-run",
    "MotionMAE: one run",
    [
        Row("Is it healthy?", [
            Panel("Progress", "percentunit", _of("motionmae_progress_ratio"), "stat", 4),
            Panel("Time left", "s", _of("motionmae_eta_seconds"), "stat", 4),
            Panel("Since the last step", "s", _of("motionmae:silence_seconds"), "stat", 4,
                  description="Stalled fires beyond five minutes"),
            Panel("Goodput without queue", "percentunit",
                  _of("motionmae_goodput_ratio", queue="excluded"), "stat", 4),
            Panel("Since the last checkpoint", "s",
                  _one(f"time() - motionmae_checkpoint_last_success_timestamp_seconds{{{_RUN}}}"), "stat", 4),
            Panel("Restarts", "short", _one(f"sum(motionmae_restarts_total{{{_RUN}}})"), "stat", 4),
        ], 4),
        Row("What it learns", [
            Panel("Loss", "short", _of("motionmae_loss", "{{component}}")),
            Panel("Gradient norm", "short", _of("motionmae_grad_norm", "before clipping")),
            Panel("Learning rate", "sci", _of("motionmae_learning_rate", "learning rate")),
        ]),
        Row("How fast", [
            Panel("Clips a second", "short", _of("motionmae:clips:rate5m", "clips/s")),
            Panel("MFU", "percentunit", _of("motionmae_mfu_ratio", "MFU")),
            Panel("Step duration", "s", [
                Query(f"motionmae:step_seconds:mean5m{{{_RUN}}}", "mean"),
                Query(f"histogram_quantile(0.99, sum by (le) (rate({_STEPS}_bucket{{{_RUN}}}[5m])))", "99 %"),
            ]),
        ]),
        Row("Why it is slow", [
            Panel("Where a step goes", "percentunit", _of("motionmae:phase:ratio", "{{phase}}"), stacked=True),
            Panel("Stragglers", "short", _one(f"topk(8, motionmae_straggler_score{{{_RUN}}})", "rank {{rank}}"),
                  description="Time until the end of the forward pass, relative to the median rank"),
            Panel("Loader queue", "short", [
                Query(f"min(motionmae_dataloader_queue_depth{{{_RUN}}})", "emptiest rank"),
                Query(f"max(motionmae_dataloader_queue_capacity{{{_RUN}}})", "capacity"),
            ]),
        ]),
        Row("Where the hours went", [
            Panel("Seconds since the start", "s", [
                Query(f"motionmae_productive_seconds{{{_RUN}}}", "productive"),
                Query(f"motionmae_badput_seconds{{{_RUN}}}", "{{cause}}"),
            ], "piechart"),
            Panel("Goodput", "percentunit", _of("motionmae_goodput_ratio", "queue {{queue}}")),
            Panel("Checkpoints", "s", _of("motionmae_checkpoint_duration_seconds", "{{op}}, blocking {{blocking}}")),
        ]),
        Row("Faults", [
            Panel("Skipped steps", "short", _of("motionmae_nonfinite_steps_total", "{{kind}}")),
            Panel("Corrupt samples", "short", _of("motionmae_corrupt_samples_total", "{{reason}}")),
            Panel("Restarts by cause", "short", _of("motionmae_restarts_total", "{{reason}}")),
        ]),
    ],
    one_run=True,
)  # fmt: skip

NODES = Dashboard(
    "motionmae-nodes",
    "MotionMAE: nodes and GPUs of a run",
    [
        Row("Nodes", [
            Panel("Hosts", "short", _of("motionmae_node_info"), "table"),
            Panel("Processors in use", "percentunit", _of("motionmae_cpu_utilization_ratio", "{{instance}}")),
            Panel("Memory in use", "percentunit", _one(
                f"1 - motionmae_memory_available_bytes{{{_RUN}}} / motionmae_memory_total_bytes{{{_RUN}}}",
                "{{instance}}")),
            Panel("Disk free", "bytes", _of("motionmae_disk_free_bytes", "{{instance}} {{volume}}")),
            Panel("Memory of ranks", "bytes", _of("motionmae_rank_resident_bytes", "rank {{rank}}")),
            Panel("Silence of ranks", "s", _one(
                f"time() - motionmae_last_step_timestamp_seconds{{{_RUN}}}", "rank {{rank}}")),
        ]),
        Row("GPUs", [
            Panel("Utilisation", "percentunit", _of("motionmae_gpu_utilization_ratio", _GPU),
                  description="A spinning NCCL kernel reads 100 %: look at power beside it"),
            Panel("Power", "watt", _of("motionmae_gpu_power_watts", _GPU)),
            Panel("Temperature", "celsius", _of("motionmae_gpu_temperature_celsius", _GPU)),
            Panel("Memory", "bytes", _of("motionmae_gpu_memory_used_bytes", _GPU)),
            Panel("SM clock", "hertz", _of("motionmae_gpu_clock_hertz", "{{instance}} GPU {{gpu}}", type="sm")),
            Panel("Held down by", "short", _one(
                f"sum by (reason) (motionmae_gpu_throttle_active{{{_RUN}}})", "{{reason}}"), stacked=True),
            Panel("Memory errors", "short", _of("motionmae_gpu_ecc_errors_total", f"{_GPU} {{{{type}}}}")),
            Panel("XID events", "short", _of("motionmae_gpu_xid_events_total", f"{_GPU} XID {{{{xid}}}}")),
            Panel("Energy of the run's GPUs", "joule",
                  _one(f"sum(motionmae_gpu_energy_joules_total{{{_RUN}}})"), "stat"),
        ]),
    ],
    one_run=True,
)  # fmt: skip

FLEET = Dashboard(
    "motionmae-fleet",
    "MotionMAE: all runs",
    [
        Row("Now", [
            Panel("States", "short", _one("motionmae_run_state == 1"), "table", 12),
            Panel("Nodes that answer", "short", [
                Query('sum(up{job="motionmae"})', "up"),
                Query('count(up{job="motionmae"})', "known"),
            ], "stat", 6),
            Panel("GPU power", "watt", _one("sum(motionmae_gpu_power_watts)"), "stat", 6),
        ], 6),
        Row("Runs beside each other", [
            Panel("Progress", "percentunit", _one("motionmae_progress_ratio", "{{run}}")),
            Panel("Clips a second", "short", _one("motionmae:clips:rate5m", "{{run}}")),
            Panel("MFU", "percentunit", _one("motionmae_mfu_ratio", "{{run}}")),
            Panel("Goodput without queue", "percentunit", _one('motionmae_goodput_ratio{queue="excluded"}', "{{run}}")),
            Panel("Waiting for data", "percentunit", _one('motionmae:phase:ratio{phase="data_wait"}', "{{run}}")),
            Panel("Restarts", "short", _one("sum by (run) (motionmae_restarts_total)", "{{run}}")),
        ]),
    ],
    one_run=False,
)  # fmt: skip

DASHBOARDS = {"run.json": RUN, "nodes.json": NODES, "fleet.json": FLEET}


def render(dashboard: Dashboard) -> str:
    """The file's content."""
    return json.dumps(dashboard.as_json(), indent=1) + "\n"


def main() -> int:
    """Write all dashboards."""
    argparse.ArgumentParser(
        prog="python -m monitoring.dashboards", description="Write the Grafana dashboards of monitoring/grafana anew."
    ).parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / name).write_text(render(dashboard))
        print(f"wrote {FOLDER / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
