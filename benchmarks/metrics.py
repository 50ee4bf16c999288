"""Cost of monitoring: `python -m benchmarks.metrics`.

Measured values and their limits: the time per step that a rank spends on metrics when it logs every step of 0.2 s (step
timer, sink and snapshot), the duration of an HTTP scrape of a node with 8 ranks and 8 GPUs, the number of time series
of that node, and 128 such nodes (1,024 ranks) behind one Prometheus, if it is installed: the number of successful
scrapes and the slowest scrape.
"""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.script import build_parser, run_script, write_json
from monitoring.collector import NodeCollector
from monitoring.exporter import Settings, listen, publish
from monitoring.gpu import GpuSource
from monitoring.rank_metrics import FlopsPerClip, RankMetrics
from monitoring.rank_snapshots import Sample
from motionmae.config import MonitoringConfig, load_config
from motionmae.files import output_file
from motionmae.runs.events import Kind, Phase, Row
from motionmae.training.step_timer import HostTimer, StepTimer

STEP_SECONDS = 0.2
RANKS, NODES = 8, 128
_INFO = {"slurm_job_id": "1", "git_sha": "0", "config_hash": "0"}


class EightGpus(GpuSource):
    """Replacement for NVML with the samples of eight GPUs."""

    def samples(self) -> list[Sample]:
        """Return a sample for each metric, GPU and label."""
        plain = ["utilization_ratio", "memory_used_bytes", "memory_total_bytes", "power_watts", "temperature_celsius"]
        found: list[Sample] = []
        for gpu in range(8):
            labels = {"gpu": str(gpu), "UUID": f"GPU-{gpu}"}
            found += [(f"gpu_{name}", labels, 1.0) for name in plain] + [("gpu_energy_joules_total", labels, 1.0)]
            found += [("gpu_clock_hertz", {**labels, "type": kind}, 1.0) for kind in ("sm", "memory")]
            found += [("gpu_ecc_errors_total", {**labels, "type": kind}, 0.0) for kind in ("corrected", "uncorrected")]
            found += [("gpu_throttle_active", {**labels, "reason": str(number)}, 0.0) for number in range(5)]
        return found


def row_of(step: int) -> Row:
    """Return a metrics row as the training loop writes it."""
    phases = {f"{phase.value}_seconds": 0.03 for phase in Phase}
    return {
        "step": step, "epoch": 1.0, "loss": 1.0, "loss_space": 0.5, "loss_time": 0.5, "lr": 1e-3, "grad_norm": 1.0,
        "steps": 1, "step_seconds": STEP_SECONDS, "clips_per_second": 100.0, "straggler_score": 1.0, "loader_ready": 4,
        "time": time.time(), **phases,
    }  # fmt: skip


def make_rank(rank: int, folder: Path) -> RankMetrics:
    """Return the metrics sink of a rank after its first step."""
    sink = RankMetrics(
        load_config("vitl_k400", ["monitoring.peak_tflops=312"]), rank, folder, [], FlopsPerClip(10**12, 160), _INFO
    )
    start = {"attempt": "a", "step": 0, "time": time.time()}
    sink.event({**start, "kind": Kind.START.value, "world": RANKS * NODES})
    sink.event({**start, "kind": Kind.READY.value, "total_steps": 10**6})
    sink.metrics(row_of(1))
    return sink


def typical(action: Callable[[], object], times: int) -> float:
    """Return the median seconds of ``action``."""
    spent = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        spent.append(time.perf_counter() - begin)
    return median(spent)


def step_cost(folder: Path) -> float:
    """Return the seconds per step that rank 0 spends on metrics if it logs every step."""
    sink, clock, row = make_rank(0, folder), StepTimer(HostTimer()), row_of(2)

    def one_step() -> None:
        clock.begin_step()
        for phase in (Phase.DATA_WAIT, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.OTHER):
            clock.enter(phase)
        clock.end_step()
        clock.take()
        sink.metrics(row)

    return typical(one_step, 500)


def make_node(number: int, folder: Path) -> tuple[NodeCollector, Callable[[], None], str]:
    """Start an exporter with eight ranks and GPUs; return the collector, the stop function and the address."""
    snapshots = folder / f"node-{number}"
    snapshots.mkdir()
    for rank in range(RANKS):
        make_rank(number * RANKS + rank, snapshots)
    collector = NodeCollector(snapshots, EightGpus(), folder / "bench", with_goodput=False)
    collector.refresh()
    monitoring = MonitoringConfig(discovery=str(folder / "sd"))
    stop, address = listen(monitoring, collector)
    settings = Settings(
        run="bench", output_dir=folder, node=number, nodes=NODES, snapshots=snapshots, monitoring=monitoring
    )
    publish(settings, address)
    return collector, stop, address


def scrape(address: str) -> bytes:
    """Read the metrics page as Prometheus does."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        return answer.read()


def thousand_ranks(folder: Path) -> dict[str, float]:
    """Scrape NODES exporters of RANKS ranks with a real Prometheus every 15 s."""
    nodes = [make_node(number, folder) for number in range(1, NODES)]
    path = folder / "prometheus.yml"
    path.write_text(
        "global: {scrape_interval: 15s}\nscrape_configs:\n  - job_name: motionmae\n"
        f"    file_sd_configs: [{{files: ['{folder}/sd/*.json']}}]\n"
    )
    listening = ["--web.listen-address=127.0.0.1:19481", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["prometheus", f"--config.file={path}", *listening], stdout=log, stderr=log)
    try:
        time.sleep(45)
        return {
            "nodes_up": query("sum(up)"),
            "series": query("sum(scrape_samples_scraped)"),
            "slowest_scrape_seconds": query("max(max_over_time(scrape_duration_seconds[1m]))"),
        }
    finally:
        server.kill()
        server.wait()
        for collector, stop, _ in nodes:
            collector.close()
            stop()


def query(expression: str) -> float:
    """Return the value of a Prometheus expression."""
    url = "http://127.0.0.1:19481/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url) as answer:
        return float(json.load(answer)["data"]["result"][0]["value"][1])


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="motionmae-bench-") as name:
        folder = Path(name)
        seconds = step_cost(folder)
        collector, stop, address = make_node(0, folder)
        text = scrape(address).decode()
        figures: dict[str, Any] = {
            "step_milliseconds": 1e3 * seconds,
            "share_of_a_step": seconds / STEP_SECONDS,
            "scrape_milliseconds": 1e3 * typical(lambda: scrape(address), 50),
            "series_a_node": sum(not line.startswith("#") for line in text.splitlines()),
            "bytes_a_scrape": len(text),
        }
        if shutil.which("prometheus"):
            figures |= thousand_ranks(folder)
        collector.close()
        stop()
    return figures


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="file for the results")
    arguments = parser.parse_args()
    figures = measure()
    limits = {"share_of_a_step": 0.005, "scrape_milliseconds": 50, "series_a_node": 1500, "nodes_up": NODES}
    table = Table("quantity", "measured", "limit")
    for key, value in figures.items():
        table.add_row(key.replace("_", " "), f"{value:.4g}", str(limits.get(key, "")))
    Console().print(table)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    run_script(main)
