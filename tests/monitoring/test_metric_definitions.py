from pathlib import Path

from monitoring.metric_definitions import GROUPS, METRICS, markdown
from tests.monitoring.runs import metrics_row

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/reference/metrics.md").read_text() == markdown(), (
        "run: python -m monitoring.metric_definitions > docs/reference/metrics.md"
    )


def test_names_are_unique_and_counters_end_in_total():
    assert len(METRICS) == sum(len(group) for group in GROUPS.values())
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS.values())
    suffixes = ("_seconds", "_bytes", "_ratio", "_watts", "_joules", "_celsius", "_hertz")
    named = {m.name: f"_{m.unit}" for m in METRICS.values() if m.name.removesuffix("_total").endswith(suffixes)}
    assert all(name.removesuffix("_total").endswith(unit) for name, unit in named.items())


def test_no_label_has_unbounded_values():
    labels = {label for metric in METRICS.values() if metric.name != "run_info" for label in metric.labels}
    assert labels <= {"gpu", "UUID", "xid", "node", "source"}


def test_metrics_rows_have_every_key_that_a_definition_names():
    keys = {key for metric in METRICS.values() if metric.event is None for key in metric.row_keys}
    assert keys <= {*metrics_row(1), "time"}
    assert {"lr", "grad_norm", "loss_space", "forward_seconds"} <= keys
