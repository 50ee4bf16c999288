"""The rules under promtool: for each alert a case in which it fires, a quiet one, and one at the edge."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from monitoring.metric_definitions import METRICS, PREFIX

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring/prometheus"
TRAINING = 'run_state{run="r",state="training"} 1x300'
GROUPS = ["motionmae-recording", "motionmae-training", "motionmae-survival", "motionmae-gpu"]
"""In the order in which promtool shall evaluate them; by itself it takes any."""
GONE_AT_20 = "1x20 _x300"
SAVED = 'checkpoint_last_success_timestamp_seconds{run="r"}'
AT_20 = "0+60x20 1200x300"
"""A moment that follows the clock for 20 minutes and then stands still; test time begins at 0."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")


class Case(NamedTuple):
    """What is scraped every minute, and how many alerts then fire after how many minutes."""

    alert: str
    name: str
    series: list[str]
    minutes: int
    firing: int


def _gpu(metric: str, values: str, **labels: str) -> str:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return f'{metric}{{run="r",instance="r/0",gpu="0",UUID="u"{more}}} {values}'


def _disk(volume: str, free: str) -> list[str]:
    where = f'{{run="r",instance="r/0",volume="{volume}"}}'
    return [f"disk_free_bytes{where} {free}", f"disk_size_bytes{where} 1000x300"]


def _ranks(*moments: str) -> list[str]:
    return [
        f'last_step_timestamp_seconds{{run="r",instance="r/{rank}",rank="{rank}"}} {values}'
        for rank, values in enumerate(moments)
    ]


def _phases(waiting: int) -> list[str]:
    return [
        f'phase_seconds_total{{run="r",rank="0",phase="data_wait"}} 0+{waiting}x300',
        f'phase_seconds_total{{run="r",rank="0",phase="forward"}} 0+{60 - waiting}x300',
    ]


def _goodput(ratio: str, seconds: int) -> list[str]:
    return [
        f'goodput_ratio{{run="r",queue="excluded"}} {ratio}x300',
        f'productive_seconds{{run="r"}} {seconds}x300',
        'badput_seconds{run="r",cause="init"} 600x300',
    ]


def _info(values: str, state: str = "training") -> list[str]:
    return [f'run_info{{run="r",git_sha="a"}} {values}', f'run_state{{run="r",state="{state}"}} {values}']


CASES = [
    Case("NonFiniteLoss", "firing", ['nonfinite_steps_total{run="r",kind="loss"} 0x10 1x300'], 15, 1),
    Case("NonFiniteLoss", "quiet", ['nonfinite_steps_total{run="r",kind="loss"} 3x300'], 15, 0),
    Case("NonFiniteLoss", "fp16 finds its scale", ['nonfinite_steps_total{run="r",kind="overflow"} 0+1x300'], 15, 0),
    Case("LossSpike", "firing", ['loss{run="r",component="total"} 1x60 3x300'], 68, 1),
    Case("LossSpike", "quiet", ['loss{run="r",component="total"} 1x60 1.5x300'], 68, 0),
    Case("LossSpike", "one row", ['loss{run="r",component="total"} 1x60 9 1x300'], 68, 0),
    Case("Stalled", "firing", [*_ranks(AT_20), TRAINING], 26, 1),
    Case("Stalled", "quiet", [*_ranks("0+60x300"), TRAINING], 26, 0),
    Case("Stalled", "five minutes are not over", [*_ranks(AT_20), TRAINING], 24, 0),
    Case("Stalled", "finished", [*_ranks(AT_20), 'run_state{run="r",state="training"} 1x20 0x300'], 26, 0),
    Case(
        "Stalled", "hangs before its first step",
        ['run_state{run="r",state="starting"} 1x300', 'snapshot_age_seconds{run="r",rank="0"} 0+60x300'], 16, 1,
    ),
    Case("RankBehind", "firing", _ranks("0+60x300", AT_20), 25, 1),
    Case("RankBehind", "quiet", _ranks("0+60x300", "0+60x300"), 25, 0),
    Case("RankBehind", "two minutes are not over", _ranks("0+60x300", AT_20), 22, 0),
    Case("DataStarved", "firing", _phases(20), 20, 1),
    Case("DataStarved", "quiet", _phases(3), 20, 0),
    Case("DataStarved", "at the limit", _phases(12), 20, 0),
    Case("Straggler", "firing", ['straggler_score{run="r",rank="3",instance="r/0"} 2x300'], 20, 1),
    Case("Straggler", "quiet", ['straggler_score{run="r",rank="3",instance="r/0"} 1.1x300'], 20, 0),
    Case("Straggler", "for a moment", ['straggler_score{run="r",rank="3",instance="r/0"} 1x10 2x2 1x300'], 20, 0),
    Case("LowGoodput", "firing", _goodput("0.5", 4000), 20, 1),
    Case("LowGoodput", "quiet", _goodput("0.97", 4000), 20, 0),
    Case("LowGoodput", "too young to tell", _goodput("0.5", 2000), 20, 0),
    Case("CorruptSamples", "firing", ['corrupt_samples_total{run="r",reason="decode"} 0x10 2x300'], 15, 1),
    Case("CorruptSamples", "quiet", ['corrupt_samples_total{run="r",reason="decode"} 2x300'], 15, 0),
    Case("CorruptSamples", "long ago", ['corrupt_samples_total{run="r",reason="decode"} 0x10 2x300'], 75, 0),
    Case("CheckpointTooOld", "firing", [f"{SAVED} 0x300", TRAINING], 130, 1),
    Case("CheckpointTooOld", "quiet", [f"{SAVED} 0+60x300", TRAINING], 130, 0),
    Case("CheckpointTooOld", "not training", [f"{SAVED} 0x300"], 130, 0),
    Case("ExporterDown", "firing", ['up{job="motionmae",run="r",instance="r/0"} 1x10 0x300'], 14, 1),
    Case("ExporterDown", "quiet", ['up{job="motionmae",run="r",instance="r/0"} 1x300'], 14, 0),
    Case("ExporterDown", "target withdrawn", ['up{job="motionmae",run="r",instance="r/0"} 1x10 _x300'], 14, 0),
    Case("RunVanished", "firing", _info(GONE_AT_20), 28, 1),
    Case("RunVanished", "quiet", _info("1x300"), 28, 0),
    Case("RunVanished", "finished", _info(GONE_AT_20, "finished"), 28, 0),
    Case("RestartLoop", "firing", ['restarts_total{run="r",reason="lost"} 0x5 1x5 2x5 3x300'], 40, 1),
    Case("RestartLoop", "quiet", ['restarts_total{run="r",reason="lost"} 0x5 1x300'], 40, 0),
    Case("RestartLoop", "preempted often", ['restarts_total{run="r",reason="preempted"} 0+1x300'], 40, 0),
    Case("DiskFilling", "firing", _disk("runs", "299-1x300"), 70, 1),
    Case("DiskFilling", "quiet", _disk("runs", "500x300"), 70, 0),
    Case("DiskFilling", "falls, but from high up", _disk("runs", "900-2x300"), 70, 0),
    Case("DiskFilling", "stays nearly full", _disk("scratch", "20x300"), 70, 1),
    Case("GPUIdle", "firing", [_gpu("gpu_utilization_ratio", "0.02x300"), TRAINING], 12, 1),
    Case("GPUIdle", "quiet", [_gpu("gpu_utilization_ratio", "0.9x300"), TRAINING], 12, 0),
    Case("GPUIdle", "not training", [_gpu("gpu_utilization_ratio", "0.02x300")], 12, 0),
    Case("BusyButStuck", "firing", [_gpu("gpu_utilization_ratio", "1x300"), *_ranks(AT_20), TRAINING], 28, 1),
    Case("BusyButStuck", "quiet", [_gpu("gpu_utilization_ratio", "1x300"), *_ranks("0+60x300"), TRAINING], 28, 0),
    Case("BusyButStuck", "stuck and idle", [_gpu("gpu_utilization_ratio", "0x300"), *_ranks(AT_20), TRAINING], 28, 0),
    Case("ECCUncorrectable", "firing", [_gpu("gpu_ecc_errors_total", "0x5 1x300", type="uncorrected")], 10, 1),
    Case("ECCUncorrectable", "quiet", [_gpu("gpu_ecc_errors_total", "4x300", type="uncorrected")], 10, 0),
    Case("ECCUncorrectable", "corrected", [_gpu("gpu_ecc_errors_total", "0+1x300", type="corrected")], 10, 0),
    Case("Xid", "firing", [_gpu("gpu_xid_events_total", "_x5 1x300", xid="79")], 10, 1),
    Case("Xid", "quiet", [], 10, 0),
    Case("Xid", "a quarter of an hour ago", [_gpu("gpu_xid_events_total", "_x5 1x300", xid="79")], 25, 0),
    Case("Throttled", "firing", [_gpu("gpu_throttle_active", "1x300", reason="thermal_hardware")], 16, 1),
    Case("Throttled", "quiet", [_gpu("gpu_throttle_active", "0x300", reason="thermal_hardware")], 16, 0),
    Case("Throttled", "by its power cap", [_gpu("gpu_throttle_active", "1x300", reason="power_cap")], 16, 0),
]  # fmt: skip


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((FOLDER / name).read_text())["groups"]:
            found += group["rules"]
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def _promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=120)


@needs_promtool
def test_promtool_finds_nothing_wrong():
    for words in (["config", "prometheus.yml"], ["rules", "recording.yml", "alerts.yml"]):
        checked = _promtool("check", *words)
        assert checked.returncode == 0, checked.stderr
        assert "FAILED" not in checked.stdout + checked.stderr


def test_every_alert_has_its_three_cases():
    for alert in alerts():
        mine = [case for case in CASES if case.alert == alert["alert"]]
        assert len(mine) >= 3
        assert {case.firing for case in mine} == {0, 1}
    assert {case.alert for case in CASES} == {alert["alert"] for alert in alerts()}


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path):
    tests = [
        {
            "interval": "1m",
            "name": f"{case.alert}: {case.name}",
            "input_series": [_series(text) for text in case.series],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": case.firing}],
                }
            ],
        }
        for case in CASES
    ]
    files = [str(FOLDER / name) for name in ("recording.yml", "alerts.yml")]
    path = tmp_path / "tests.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": files, "evaluation_interval": "1m", "group_eval_order": GROUPS, "tests": tests})
    )
    tested = _promtool("test", "rules", str(path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


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
    page = (ROOT / "docs/runbook.md").read_text()
    anchors = {heading.strip().lower() for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    for alert in alerts():
        assert set(alert["annotations"]) == {"summary", "causes", "next", "runbook"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
    assert anchors == {alert["alert"].lower() for alert in alerts()}
