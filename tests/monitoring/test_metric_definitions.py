from pathlib import Path

from monitoring.metric_definitions import GROUPS, METRICS, markdown

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_catalogue_says():
    assert (ROOT / "docs/metrics.md").read_text() == markdown(), (
        "run: python -m monitoring.metric_definitions > docs/metrics.md"
    )


def test_names_are_unique_and_counters_end_in_total():
    assert len(METRICS) == sum(len(group) for group in GROUPS.values())
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS.values())
    suffixes = ("_seconds", "_bytes", "_ratio", "_watts", "_joules", "_celsius", "_hertz")
    named = {m.name: f"_{m.unit}" for m in METRICS.values() if m.name.removesuffix("_total").endswith(suffixes)}
    assert all(name.removesuffix("_total").endswith(unit) for name, unit in named.items())


def test_no_label_can_take_ever_new_values():
    labels = {label for metric in METRICS.values() if metric.name != "run_info" for label in metric.labels}
    assert labels <= {"gpu", "UUID", "xid", "node"}
