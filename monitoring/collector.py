"""Prometheus collector of a node: reads its ranks' snapshots, the host, the GPUs, and on rank 0's node the goodput.

A thread reads host and GPUs every few seconds, because a read may hang and a scrape must not.
"""

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from monitoring.goodput import GoodputTracker
from monitoring.gpu import CLOSE_SECONDS, GpuSource
from monitoring.metric_definitions import METRICS, STEP_BUCKETS
from monitoring.rank_snapshots import Sample, Snapshot, read_all
from motionmae.runs.history import RunTail

_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_process_of = lru_cache(psutil.Process)  # to open a process costs more than to read its memory
SAMPLE_SECONDS = 5.0  # interval between readings of host, GPUs and goodput


class NodeCollector(Collector):
    """Prometheus collector that yields every metric family that has a value.

    Args:
        folder: the node's snapshot folder.
        gpus: source of the GPU metrics. The collector closes it.
        run: the run folder.
        with_goodput: also compute the run's goodput; true on rank 0's node only.
    """

    def __init__(self, folder: Path, gpus: GpuSource, run: Path, *, with_goodput: bool) -> None:
        self._folder, self._gpus = folder, gpus
        self._volumes = {"runs": run.parent, "scratch": Path(tempfile.gettempdir())}
        self._tail = RunTail(run) if with_goodput else None
        self._goodput = GoodputTracker()
        self._readings: list[Sample] = []
        self._refreshing = threading.Lock()
        self._closed = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="sampler", daemon=True)
        self._sampler.start()
        self.last_scrape: float | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families with all samples."""
        self.last_scrape = time.monotonic()
        families: dict[str, Metric] = {}
        for name, labels, value in self._readings:
            _family(families, name, tuple(labels)).add_metric(list(labels.values()), value)
        for snapshot in read_all(self._folder):
            rank = {"rank": str(snapshot.rank)}
            for name, labels, value in (*snapshot.samples, *_process(snapshot)):
                if name in METRICS:
                    labels = {**rank, **labels} if METRICS[name].per_rank else labels
                    _family(families, name, tuple(labels)).add_metric(list(labels.values()), value)
            if any(snapshot.histogram):
                bounds = [*map(str, STEP_BUCKETS), "+Inf"]
                buckets = list(zip(bounds, accumulate(snapshot.histogram), strict=True))
                _family(families, "step_duration_seconds", ()).add_metric([], buckets, snapshot.histogram_sum)
        yield from families.values()

    def close(self) -> None:
        """Stop the thread and close the GPU driver, which stays open if the thread hangs in it."""
        self._closed.set()
        self._sampler.join(CLOSE_SECONDS)
        if not self._sampler.is_alive():
            self._gpus.close()

    def refresh(self) -> None:
        """Read host, GPUs and goodput now."""
        with self._refreshing:  # the thread may refresh too, and both would read the same rows
            self._readings = [*self._node_samples(), *self._gpus.samples(), *self._goodput_samples()]

    def _sample(self) -> None:
        while True:
            self.refresh()
            if self._closed.wait(SAMPLE_SECONDS):
                return

    def _node_samples(self) -> Iterator[Sample]:
        yield "node_info", {"node": socket.gethostname()}, 1
        memory = psutil.virtual_memory()
        yield "memory_available_bytes", {}, memory.available
        yield "memory_total_bytes", {}, memory.total
        yield "cpu_utilization_ratio", {}, psutil.cpu_percent() / 100  # since this thread's last call
        for volume, path in self._volumes.items():
            with suppress(OSError):
                usage = shutil.disk_usage(path)
                yield "disk_free_bytes", {"volume": volume}, usage.free
                yield "disk_size_bytes", {"volume": volume}, usage.total

    def _goodput_samples(self) -> Iterator[Sample]:
        if self._tail is None:
            return
        for row in self._tail.new_rows():
            self._goodput.add(row)
        now = time.time()
        totals = self._goodput.totals(now if self._goodput.is_silent(now) else None)
        yield "productive_seconds", {}, totals.productive
        for category, seconds in totals.badput.items():
            yield "badput_seconds", {"cause": category}, max(seconds, 0.0)
        yield "goodput_ratio", {"queue": "included"}, totals.ratio
        yield "goodput_ratio", {"queue": "excluded"}, totals.ratio_without_queue


def _process(snapshot: Snapshot) -> Iterator[Sample]:
    yield "snapshot_age_seconds", {}, max(time.time() - snapshot.time, 0.0)
    try:
        resident = _process_of(snapshot.pid).memory_info().rss
    except psutil.Error:
        yield "rank_alive", {}, 0.0
        return
    yield "rank_alive", {}, 1.0
    yield "rank_resident_bytes", {}, resident


def _family(families: dict[str, Metric], name: str, labels: tuple[str, ...]) -> Any:
    if name not in families:
        metric = METRICS[name]
        families[name] = _FAMILIES[metric.kind](metric.full_name, metric.help, labels=labels)
    return families[name]
