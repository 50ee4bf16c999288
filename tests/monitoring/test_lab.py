"""A run on the real four-node cluster, seen by a real Prometheus on its head, asked through its HTTP API."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from monitoring.metric_definitions import METRICS
from slurm.job_state import JobRecord
from tests.monitoring.prometheus import Prometheus, needs_prometheus, write_configuration
from tests.monitoring.runs import FAKE_NVML, ROOT, label_of
from tests.monitoring.test_dashboards import expressions
from tests.slurm import tiny
from tests.slurm_lab.conftest import lab, lab_machine  # noqa: F401
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import NO_STANDBY, RATE
from tests.training.launch import wait_until
from tests.training.shards import make_shards

STEPS, BATCH = 80, 8
SLOW_RATE = "40mbit"
"""Bandwidth at which a step takes seconds."""


def _submit(cluster: Lab, tmp_path: Path) -> JobRecord:
    shards = make_shards(tmp_path / "shards", samples=8)
    flags = ["--nodes", "4", "--ntasks-per-node", "1", "--time", "60", "--partition", "low"]
    changes = [f"optim.epochs={STEPS * BATCH // 16}", "engine.micro_batch_size=2", "checkpoint.every_steps=5"]
    changes += ["monitoring.address=eth0", "monitoring.peak_tflops=0.1", NO_STANDBY]
    command = [sys.executable, str(ROOT / "slurm/submit.py"), "--config", "demo", *flags]
    submitted = cluster.run(
        *command, *tiny.overrides(shards), *changes, cwd=tmp_path, env={"PYTHONPATH": str(FAKE_NVML)}
    )
    assert submitted.returncode == 0, submitted.stderr
    record = JobRecord.read(tmp_path / "runs/demo")
    assert record is not None
    return record


def _sooner(rules: str) -> str:
    """The shipped rules for people who cannot wait five minutes."""
    changed = re.sub(r"silence_seconds > 300", "silence_seconds > 5", rules)
    return re.sub(r"\bfor: \d+m", "for: 15s", changed)  # Prometheus takes 5 s to drop a target


_OPTIONAL = ("motionmae_validation_", "motionmae_source_")
"""Metrics of a run that validates or mixes sources, which this run does not (test_exporter.py has them)."""


@contextmanager
def _stopped_rank(folder: Path) -> Iterator[None]:
    """Stop one rank, as a process stops that waits for its dead file system."""
    ranks = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            name = (path.parent / "comm").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith("rank") and "submitit.core._submit" in words[:4] and str(folder) in "".join(words):
            ranks.append(int(path.parent.name))
    assert len(ranks) == 4, ranks
    os.kill(ranks[-1], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(ranks[-1], signal.SIGCONT)


def _instances(prometheus: Prometheus, expression: str) -> set[str]:
    return {sample["metric"]["instance"] for sample in prometheus.query(expression)}


def _attempts(run: Path) -> int:
    return sum(row["kind"] == "ready" for row in tiny.rows(run, "events.jsonl"))


@pytest.fixture
def paced_lab(lab: Lab) -> Iterator[Lab]:  # noqa: F811
    """Steps take a quarter of a second: Prometheus scrapes every attempt from its first steps on."""
    with Lab(nodes=4, rate=RATE) as started:
        yield started


@needs_prometheus
@pytest.mark.long
def test_metrics_of_four_nodes_through_hang_requeue_and_end(paced_lab: Lab, tmp_path: Path) -> None:
    lab = paced_lab  # noqa: F811
    run, label = tmp_path / "runs/demo", label_of(tmp_path / "runs")
    instances = {f"{label}/{node}" for node in range(4)}
    configuration = write_configuration(tmp_path / "prometheus", tmp_path / "runs/.sd", _sooner)
    with Prometheus(configuration, lab.on_head()) as prometheus:
        record = _submit(lab, tmp_path)
        wait_until(lambda: _instances(prometheus, 'up{job="motionmae"} == 1') == instances, "four targets")
        wait_until(lambda: prometheus.query("motionmae_step > 10"), f"steps: see {record.log}")

        # one rank hangs, so all do: the exporters answer, and the alert names the run
        with _stopped_rank(tmp_path):
            wait_until(lambda: "Stalled" in prometheus.alerts(), "the alert Stalled")
            assert prometheus.alerts()["Stalled"]["labels"]["run"] == label
            assert _instances(prometheus, 'up{job="motionmae"} == 1') == instances
            assert len(prometheus.query("motionmae_snapshot_age_seconds > 3")) == 4

            # every series of the catalogue, from every node that has it; every dashboard expression
            wait_until(lambda: all(map(prometheus.query, expressions(label))), "data in every panel")
            names = [metric.full_name for metric in METRICS.values() if not metric.full_name.startswith(_OPTIONAL)]
            missing = [name for name in names if not _is_there(prometheus, name)]
            assert missing == []
            for name in ("motionmae_rank_step", "motionmae_gpu_power_watts", "motionmae_node_info"):
                assert _instances(prometheus, name) == instances
            nodes = {sample["metric"]["node"] for sample in prometheus.query("motionmae_node_info")}
            assert nodes == {f"node{number}" for number in range(1, 5)}
            assert prometheus.value("count(motionmae_step)") == 1
            assert max(int(s["value"][1]) for s in prometheus.query(f'count by (instance) ({{run="{label}"}})')) < 1500

        # a requeue: the same instances come back, as the same series
        lab.change_rate(SLOW_RATE)  # Prometheus sees the first steps of the next attempt, however busy this machine is
        lab.run("scontrol", "requeue", record.job_id)
        wait_until(lambda: _attempts(run) == 2, "the second attempt")
        wait_until(lambda: prometheus.query("resets(motionmae_clips_total[15m]) == 1"), "clips of the second attempt")
        lab.change_rate(RATE)
        assert lab.wait_for_job(record.job_id, ("COMPLETED", "FAILED"), 300) == "COMPLETED", Path(
            record.log
        ).read_text()
        assert "Stalled" not in prometheus.alerts()
        (clips,) = prometheus.query("motionmae_clips_total[15m]")
        scraped = [float(value) for _, value in clips["values"]]
        counted = sum(b - a if b >= a else b for a, b in pairwise(scraped))
        assert sum(b < a for a, b in pairwise(scraped)) == 1
        # increase() goes beyond the first sample by half an interval, beyond the last by 1.1 (extrapolatedRate)
        extrapolated = counted * (1 + 1.6 / (len(scraped) - 1))
        assert counted * 0.999 <= prometheus.value("increase(motionmae_clips_total[15m])") <= extrapolated
        # all but the steps after the last scrape of an attempt
        assert 0.75 * STEPS * BATCH <= scraped[0] + counted <= STEPS * BATCH
        restarts = prometheus.value('sum(increase(motionmae_restarts_total{reason="stopped"}[15m]))')
        assert restarts == pytest.approx(1, rel=0.3)

        # the end: seen as such, and then gone, not down
        assert prometheus.value('max_over_time(motionmae_run_state{state="finished"}[15m])') == 1
        assert list((tmp_path / "runs/.sd").iterdir()) == []
        wait_until(lambda: not prometheus.query('up{job="motionmae"}'), "the end of the targets")
        assert not {"RunVanished", "ExporterDown"} & set(prometheus.alerts())


def _is_there(prometheus: Prometheus, name: str) -> bool:
    return bool(prometheus.query(name) or prometheus.query(f"{name}_count"))
