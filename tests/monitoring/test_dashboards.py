import itertools
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from monitoring.metric_definitions import METRICS
from motionmae.runs.events import Kind
from tests.monitoring.prometheus import Prometheus, needs_prometheus, write_configuration
from tests.monitoring.runs import ROOT, Exporter, FedRun, config_of, label_of, settings_of
from tests.monitoring.test_rules import metrics_in
from tests.training.launch import wait_until

FOLDER = ROOT / "monitoring/grafana"
PAGES = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def expressions(run: str) -> list[str]:
    """Every expression of every dashboard, its variables filled in."""
    panels = [panel for page in PAGES.values() for panel in page["panels"]]
    return [target["expr"].replace("$run", run) for panel in panels for target in panel.get("targets", [])]


def panels_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in page["panels"] if panel["type"] != "row"]


def test_dashboards_are_there_and_differ():
    assert set(PAGES) == {"run.json", "nodes.json", "fleet.json"}
    assert (
        len({page["uid"] for page in PAGES.values()}) == len({page["title"] for page in PAGES.values()}) == len(PAGES)
    )


@pytest.mark.parametrize("name", sorted(PAGES))
def test_ids_are_unique_units_are_given_and_nothing_overlaps(name: str):
    page = PAGES[name]
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    for panel in panels_of(page):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in itertools.combinations([panel["gridPos"] for panel in page["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in page["panels"])


def test_expressions_and_legends_use_defined_metrics_and_labels():
    for page in PAGES.values():
        for target in (target for panel in panels_of(page) for target in panel["targets"]):
            assert metrics_in(target["expr"]) <= set(METRICS)
            names = [METRICS[name] for name in metrics_in(target["expr"])]
            known = {"run", "instance", "phase"}.union(*({*metric.label_names, "rank"} for metric in names))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known


@pytest.mark.slow
@needs_prometheus
def test_every_expression_returns_data_from_a_prometheus_that_scrapes_a_run(tmp_path: Path):
    config, label = config_of(tmp_path / "runs"), label_of(tmp_path / "runs")
    run = FedRun(config, tmp_path, ranks=2)
    run.event(Kind.READY, 0, total_steps=10_000)
    stop = threading.Event()

    def train() -> None:
        for step in range(1, 10_000):
            run.metrics(step)
            if step % 5 == 0:
                run.event(Kind.CHECKPOINT, step, bytes=1000, seconds=3.0, blocking=1.0)
            if stop.wait(0.2):
                return

    configuration = write_configuration(tmp_path / "prometheus", Path(config.output_dir) / ".sd")
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter, Prometheus(configuration) as prometheus:
        exporter.address()
        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            wait_until(lambda: all(map(prometheus.query, expressions(label))), "data in every panel")
        except AssertionError:
            empty = [text for text in expressions(label) if not prometheus.query(text)]
            pytest.fail(f"no data: {empty}")
        finally:
            stop.set()
            trainer.join()
        assert json.loads((FOLDER / "run.json").read_text())["templating"]["list"][1]["query"].startswith(
            "label_values("
        )
        assert not any("error" in alert["annotations"]["summary"] for alert in prometheus.alerts().values())
