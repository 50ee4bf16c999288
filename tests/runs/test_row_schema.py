"""Which rows of events.jsonl and metrics.jsonl readers take, with each limit from both sides."""

from typing import Any

import pytest

from motionmae.runs.end_reason import EndReason
from motionmae.runs.row_schema import fault_of

BASE: dict[str, Any] = {"attempt": "a", "time": 1.0, "step": 4}
METRICS = {**BASE, "step_seconds": 1.0, "data_wait_seconds": 0.1, "epoch": 0.5, "clips_per_second": 3.0}
EVENTS: dict[str, dict[str, Any]] = {
    "start": {"world": 8},
    "ready": {"total_steps": 100},
    "resume": {"seconds": 1.0},
    "checkpoint": {"blocking": 0.1},
    "validation": {"seconds": 1.0},
    "stop": {"reason": "crashed"},
    "failure": {"reason": "killed"},
    "corrupt_sample": {"reasons": {"empty": 2}},
    "finish": {},
    "of_a_later_version": {},
}


def event(kind: str, **changes: Any) -> dict[str, Any]:
    return {**BASE, "kind": kind, **EVENTS[kind], **changes}


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_needs_its_own_values_and_may_have_others(kind: str) -> None:
    assert fault_of(event(kind, more=[1], detail={"a": None}), is_event=True) == ""
    for key in EVENTS[kind]:
        row = event(kind)
        del row[key]
        assert fault_of(row, is_event=True) == f"{key}: Field required"


@pytest.mark.parametrize("key", ["attempt", "time", "step", "kind"])
def test_every_event_needs_these(key: str) -> None:
    for kind in ("finish", "start", "of_a_later_version"):
        row = event(kind)
        del row[key]
        assert fault_of(row, is_event=True) == f"{key}: Field required"


@pytest.mark.parametrize("kind", [None, 3, ["start"], {}])
def test_a_kind_that_is_no_text_is_a_fault(kind: object) -> None:
    assert fault_of({**BASE, "kind": kind, "world": 1}, is_event=True).startswith("kind: ")


HUGE = 2**53
LIMITS = [
    # kind, key, values that fit, values that do not
    ("finish", "time", [0, 1e11, 3], [-1e-9, 1.01e11, "1", None, True]),
    ("finish", "step", [0, HUGE], [-1, HUGE + 1, 1.0, "4", True]),
    ("finish", "attempt", ["", "x"], [1, None]),
    ("finish", "error", ["", "x"], [1, None]),
    ("start", "world", [1, 2**31], [0, 2**31 + 1, 8.0]),
    ("start", "hosts", [["a"], ["a", "b"]], [[], "a", [1]]),
    ("start", "host", ["a"], [1]),
    ("start", "age", [-1e11, 1e11], [-1.01e11, 1.01e11, "1"]),
    ("start", "number", [0, 7], ["7", 7.5]),
    ("start", "job", ["7"], [7]),
    ("start", "restart", [2], ["2"]),
    ("start", "start", [2], ["2"]),
    ("start", "code", ["abc"], [1]),
    ("ready", "total_steps", [0, HUGE], [-1, HUGE + 1, None]),
    ("resume", "seconds", [-1.0, 1e11], [1.01e11, None]),
    ("resume", "source", ["memory", "disk"], ["network", 1]),
    ("checkpoint", "blocking", [-1.0, 1e11], [1.01e11]),
    ("checkpoint", "seconds", [-1.0, 1e11], [1.01e11]),
    ("checkpoint", "bytes", [0, 1e30], [-1, 1.01e30]),
    ("validation", "seconds", [1.0], [1.01e11]),
    ("validation", "loss", [None, 1e100, -1e100], ["1", 1.01e100, -1.01e100]),
    ("validation", "top1", [None, 80.0], ["80"]),
    ("validation", "top5", [None, 80.0], ["80"]),
    ("validation", "knn", [None, 80.0], ["80"]),
    ("validation", "videos", [0], [-1, None]),
    ("validation", "missing", [0], [-1, None]),
    ("validation", "is_best", [True, False], [1, None]),
    ("stop", "reason", [reason.value for reason in EndReason], ["stoppedx", "xstopped", "", 1]),
    ("failure", "reason", [reason.value for reason in EndReason], ["node", None]),
    ("failure", "again", [True, False], [1, None]),
    ("failure", "inside", [True, False], [1, None]),
    ("corrupt_sample", "reasons", [{}, {"a": 0}, {"a": HUGE}], [[], {"a": -1}, {"a": HUGE + 1}, {"a": "1"}]),
]


@pytest.mark.parametrize(("kind", "key", "good", "bad"), LIMITS, ids=lambda value: value if type(value) is str else "")
def test_the_values_of_an_event(kind: str, key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert fault_of(event(kind, **{key: value}), is_event=True) == "", value
    for value in bad:
        assert fault_of(event(kind, **{key: value}), is_event=True).startswith(key), value


def test_the_values_of_one_kind_do_not_matter_to_another() -> None:
    assert fault_of(event("finish", world=0, reason="?", total_steps=-1), is_event=True) == ""


def test_a_metrics_row_has_numbers_only() -> None:
    assert fault_of(METRICS, is_event=False) == ""
    assert fault_of({**METRICS, "loss": None, "loss_space": 2, "source_samples/a": 3.5}, is_event=False) == ""
    for value in ("1", True, [1], {}):
        assert fault_of({**METRICS, "loss": value}, is_event=False).startswith("loss: ")
    for key in METRICS:
        row = {name: value for name, value in METRICS.items() if name != key}
        assert fault_of(row, is_event=False) == f"{key}: Field required"
        assert fault_of({**METRICS, key: {}}, is_event=False).startswith(key)
    assert fault_of({**METRICS, "attempt": 1.0}, is_event=False).startswith("attempt")


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("steps", [1, HUGE], [0, HUGE + 1, 1.5]),
        ("slowest_rank", [0, HUGE], [-1, 1.5]),
        ("loss", [-1e100, 1e100], [1.01e100, -1.01e100]),
        *(
            (f"{name}_seconds", [-1e11, 1e11, 0], [1.01e11, -1.01e11, None])
            for name in ("step", "data_wait", "forward", "backward", "optimizer", "checkpoint", "memory_copy",
                         "validation", "other")
        ),
        *((name, [1e100, -1e100], [1.01e100, None])
          for name in ("epoch", "clips_per_second", "slowest_score", "loader_ready")),
    ],
)  # fmt: skip
def test_the_values_of_a_metrics_row(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert fault_of({**METRICS, key: value}, is_event=False) == "", value
    for value in bad:
        assert fault_of({**METRICS, key: value}, is_event=False).startswith(key), value


def test_a_metrics_row_is_no_event() -> None:
    assert fault_of(METRICS, is_event=True) == "kind: Field required"
    assert fault_of(event("finish"), is_event=False) != ""
