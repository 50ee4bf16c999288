"""The rules under promtool: each limit of an alert from both sides, and the values of the expressions."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.metric_definitions import METRICS, PREFIX
from tests.monitoring.rule_cases import CASES, VALUES

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring/prometheus"
GROUPS = ["motionmae-recording", "motionmae-training", "motionmae-survival", "motionmae-gpu"]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((FOLDER / name).read_text())["groups"]:
            found += group["rules"]
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def _promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=600)


@needs_promtool
def test_promtool_finds_nothing_wrong():
    for words in (["config", "prometheus.yml"], ["rules", "recording.yml", "alerts.yml"]):
        checked = _promtool("check", *words)
        assert checked.returncode == 0, checked.stderr
        assert "FAILED" not in checked.stdout + checked.stderr


def test_every_alert_has_cases_on_both_sides():
    for alert in alerts():
        mine = [case for case in CASES if case.alert == alert["alert"]]
        assert len(mine) >= 3
        assert {0, 1} <= {case.firing for case in mine}
        if "for" in alert:
            assert {"not yet for" in case.name for case in mine} == {True, False}
    assert {case.alert for case in CASES} == {alert["alert"] for alert in alerts()}


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path):
    tests: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
    for case in CASES:
        fires = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)'
        test = _test(f"{case.alert}: {case.name}", case.series, fires, f"{case.minutes}m", {"{}": case.firing})
        first = tests.setdefault(case.alert, {}).setdefault(tuple(case.series), test)
        if first is not test:  # the same series at another time
            first["promql_expr_test"] += test["promql_expr_test"]
    _run(tmp_path, {alert: list(found.values()) for alert, found in tests.items()})


@needs_promtool
def test_expressions_have_the_right_values_and_labels(tmp_path: Path):
    expressions = {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()}
    assert {case.rule for case in VALUES} >= {name for name in expressions if ":" in name}
    tests = [
        _test(
            f"{case.rule}: {case.name}",
            case.series,
            f"round({expressions[case.rule]}, 0.001)",
            f"{case.seconds}s",
            case.samples,
        )
        for case in VALUES
    ]
    _run(tmp_path, {"": tests})


def _run(folder: Path, tests: dict[str, list[dict[str, Any]]]) -> None:
    """Run the tests of each alert with this alert and the recording rules alone: all of them would take a minute."""
    paths = []
    for alert, cases in tests.items():
        names = [name for name in GROUPS[1:] if alert in _alerts_of(name)]
        rule = {"groups": [{"name": name, "rules": [_alerts_of(name)[alert]]} for name in names]}
        (folder / f"{alert}_rules.yml").write_text(yaml.safe_dump(rule))
        files = [str(FOLDER / "recording.yml"), f"{alert}_rules.yml"]
        order = [GROUPS[0], *names]  # by itself, promtool takes any
        content = {"rule_files": files, "evaluation_interval": "1m", "group_eval_order": order, "tests": cases}
        paths.append(folder / f"{alert}_tests.yml")
        paths[-1].write_text(yaml.safe_dump(content))
    tested = _promtool("test", "rules", *map(str, paths))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _alerts_of(group: str) -> dict[str, Any]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for found in groups if found["name"] == group for rule in found["rules"]}


def _test(name: str, series: list[str], expression: str, moment: str, samples: dict[str, float]) -> dict[str, Any]:
    expected = [{"labels": labels, "value": value} for labels, value in samples.items()]
    return {
        "interval": "1m",
        "name": name,
        "input_series": [_series(text) for text in series],
        "promql_expr_test": [{"expr": expression, "eval_time": moment, "exp_samples": expected}],
    }


def _series(text: str) -> dict[str, str]:
    series, _, values = text.partition("} ")
    return {"series": f"{'' if text.startswith('up{') else PREFIX}{series}}}", "values": values}


def metrics_in(expression: str) -> set[str]:
    """Names of metrics that an expression reads, without the prefix; recorded ones have colons."""
    names = set(re.findall(rf"\b{PREFIX}(\w+)", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) if name not in METRICS else name for name in names}


def test_rules_use_defined_metrics_and_labels():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert metrics_in(rule["expr"]) <= set(METRICS), rule
        assert set(re.findall(r"motionmae:[\w:]+", rule["expr"])) <= recorded
        for name, selector in re.findall(rf"\b{PREFIX}(\w+){{([^}}]*)}}", rule["expr"]):
            metric = METRICS[name]
            for label, value in re.findall(r'(\w+)[!=~]+"([^"]*)"', selector):
                known = dict(metric.values).get(label)
                assert label == "rank" or set(value.split("|")) <= set(known or ()), rule


def test_every_alert_has_all_annotations_and_a_runbook_section():
    page = (ROOT / "docs/operate/runbook.md").read_text()
    anchors = {heading.strip().lower() for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    for alert in alerts():
        assert set(alert["annotations"]) == {"summary", "causes", "next", "runbook"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["runbook"] == f"docs/operate/runbook.md#{alert['alert'].lower()}"
    assert anchors == {alert["alert"].lower() for alert in alerts()}
