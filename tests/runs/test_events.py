import math
import resource
from pathlib import Path

import pytest

from motionmae.runs.events import (
    EventLog,
    JsonLines,
    Kind,
    LineFile,
    drop_repeated,
    read_rows,
)


def row(step: int, attempt: str = "a", **fields: float) -> dict[str, object]:
    return {"attempt": attempt, "step": step, **fields}


def write(path: Path, *rows: dict[str, object]) -> None:
    file = LineFile(path)
    for item in rows:
        file.append(item)
    file.close()


@pytest.mark.parametrize("torn", ["{", '{"step": 3, "lo', '{"step": 3, "loss": 1.0}'[:-1]])
def test_a_torn_last_line_is_skipped_and_the_next_row_stands_alone(tmp_path: Path, torn: str):
    path = tmp_path / "metrics.jsonl"
    write(path, row(1), row(2))
    with path.open("a") as file:
        file.write(torn)
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    write(path, row(3), row(4))
    assert [r["step"] for r in read_rows(path)] == [1, 2, 3, 4]


def test_repeated_rows_replace_earlier_ones(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, *(row(step, "a", loss=1.0) for step in (1, 2, 3, 4, 5)), *(row(step, "b", loss=2.0) for step in (3, 4)))
    kept = drop_repeated(read_rows(path))
    assert [(r["step"], r["attempt"]) for r in kept] == [
        (1, "a"),
        (2, "a"),
        (3, "b"),
        (4, "b"),
    ]


def test_no_file_has_no_rows(tmp_path: Path):
    assert list(read_rows(tmp_path / "none.jsonl")) == []
    assert drop_repeated(read_rows(tmp_path / "none.jsonl")) == []


def test_log_stamps_rows_and_writes_what_json_cannot_hold_as_null(tmp_path: Path):
    log = EventLog("attempt1", [JsonLines(tmp_path / "events.jsonl", tmp_path / "metrics.jsonl")])
    log.event(Kind.CHECKPOINT, 7, bytes=12)
    log.metrics({"step": 8, "loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    log.close()
    (event,) = read_rows(tmp_path / "events.jsonl")
    (metrics,) = read_rows(tmp_path / "metrics.jsonl")
    assert event.items() >= {"attempt": "attempt1", "kind": "checkpoint", "step": 7, "bytes": 12}.items()
    assert metrics.items() >= {"attempt": "attempt1", "step": 8, "loss": None, "grad_norm": None, "lr": 0.5}.items()
    assert event["time"] <= metrics["time"]
    assert log.last_step == 8


def test_events_of_older_checkpoints_do_not_change_the_last_step():
    log = EventLog("attempt1")
    log.event(Kind.READY, 1400)
    log.metrics({"step": 1480})
    for kind in (Kind.CHECKPOINT, Kind.CHECKPOINT_FAILED, Kind.PICTURE):
        log.event(kind, 1000)
        assert log.last_step == 1480, kind
    log.event(Kind.NONFINITE, 1481)
    assert log.last_step == 1481
    log.event(Kind.ROLLBACK, 1200)
    assert log.last_step == 1200


def test_a_sink_that_cannot_write_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    class Memory:
        def __init__(self) -> None:
            self.rows: list[dict[str, object]] = []

        def event(self, row: dict[str, object]) -> None:
            self.rows.append(row)

        metrics = event

        def close(self) -> None:
            pass

    memory = Memory()
    files = JsonLines(tmp_path / "events.jsonl", tmp_path / "metrics.jsonl")
    log = EventLog("attempt1", [files, memory])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # any file may grow to ten bytes
    try:
        for step in range(3):
            log.metrics({"step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r["step"] for r in memory.rows] == [0, 1, 2]
    assert len([r for r in caplog.records if "training continues" in r.message]) == 1
    log.metrics({"step": 3})
    log.close()
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [3]


def test_all_sinks_are_closed_even_if_one_fails():
    closed = []

    class Full:
        def event(self, row: dict) -> None:
            pass

        metrics = event

        def close(self) -> None:
            closed.append(self)
            raise OSError(28, "No space left on device")

    EventLog("attempt1", [Full(), Full()]).close()
    assert len(closed) == 2
