"""Collector and announcements of one process, without an exporter around them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from monitoring import collector
from monitoring.collector import NodeCollector
from monitoring.metric_definitions import STEP_BUCKETS
from monitoring.rank_snapshots import Sample, read_all
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind
from tests.monitoring.runs import FedRun, config_of


class NoGpus:
    def samples(self) -> Iterator[Sample]:
        yield from ()

    def close(self) -> None:
        pass


def _collector(run: FedRun, folder: Path, with_goodput: bool) -> NodeCollector:
    return NodeCollector(folder, NoGpus(), run.folder.path, with_goodput=with_goodput)  # type: ignore[arg-type]


def _values(found: NodeCollector) -> dict[tuple[str, str], float]:
    """Values by name and last label."""
    samples = [sample for family in found.collect() for sample in family.samples]
    return {(one.name.removeprefix("motionmae_"), [*one.labels.values(), ""][0]): one.value for one in samples}


def _announced(folder: Path, name: str) -> dict[str, float]:
    (snapshot,) = read_all(folder)
    return {[*labels.values(), ""][0]: value for found, labels, value in snapshot.samples if found == name}


def test_time_is_idle_only_after_a_long_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.READY, 0, total_steps=10)
    run.metrics(1, seconds=0.001)
    with closing(_collector(run, tmp_path, with_goodput=True)) as found:
        found.refresh()
        assert _values(found)["badput_seconds", "downtime"] == 0
        now = collector.time.time
        monkeypatch.setattr(collector.time, "time", lambda: now() + 100)
        found.refresh()
        assert _values(found)["badput_seconds", "downtime"] == pytest.approx(100, abs=50)
    with closing(_collector(run, tmp_path, with_goodput=False)) as found:
        found.refresh()
        names = {name for name, _ in _values(found)}
    assert "productive_seconds" not in names
    assert {"disk_free_bytes", "memory_total_bytes", "rank_alive", "rank_resident_bytes"} <= names


def test_the_utilization_of_the_processors_is_a_share(tmp_path: Path) -> None:
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    with closing(_collector(run, tmp_path, with_goodput=False)) as found:
        share = 0.0
        while not share:  # the loop itself uses a processor
            found.refresh()
            share = _values(found)["cpu_utilization_ratio", ""]
    assert share <= 1


@pytest.mark.parametrize(
    ("reason", "label"),
    [(EndReason.HUNG, "hung"), (EndReason.PREEMPTED, "preempted"), (EndReason.STOPPED, "stopped"),
     (EndReason.TERMINATED, "stopped"), (EndReason.CRASHED, "failed"), (EndReason.LOST_PEERS, "failed"),
     (EndReason.KILLED, "lost"), (EndReason.NODE_DOWN, "lost")],
)  # fmt: skip
def test_a_restart_is_counted_by_what_ended_the_attempt_before(tmp_path: Path, reason: EndReason, label: str) -> None:
    config = config_of(tmp_path / "runs")
    first = FedRun(config, tmp_path)
    first.event(Kind.READY, 0, total_steps=10)
    first.event(Kind.STOP, 4, reason=reason)
    FedRun(config, tmp_path, "b").event(Kind.READY, 4, total_steps=10)
    restarts = _announced(tmp_path, "restarts_total")
    assert {key: value for key, value in restarts.items() if value} == {label: 1}


def test_counters_count_every_step_of_a_row(tmp_path: Path) -> None:
    run = FedRun(config_of(tmp_path / "runs"), tmp_path)
    run.event(Kind.READY, 0, total_steps=10)
    for step in (3, 5):
        run.metrics(step, steps=step - 3 or 3)
    clips = _announced(tmp_path, "clips_total")[""]
    assert clips == 5 * 8
    assert _announced(tmp_path, "tokens_total") == {"": clips * 100}
    assert _announced(tmp_path, "flops_total") == {"": clips * 1e9}


def test_the_buckets_of_a_step_are_those_of_the_documentation() -> None:
    """They begin below a step of the smallest model, and end at five minutes."""
    assert STEP_BUCKETS == (
        0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120, 300,
    )  # fmt: skip
