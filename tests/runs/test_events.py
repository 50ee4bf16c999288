import contextlib
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.events import (
    FAULTS,
    OUTSIDE_STEPS,
    EventLog,
    JsonLines,
    Kind,
    LineFile,
    Sink,
    append_row,
    drop_repeated,
    parse_rows,
    read_rows,
)

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("before", [b"", b'{"step": 1}\n', b'{"step": 1}', b"\n"])
def test_a_row_begins_a_line_and_ends_it(tmp_path: Path, before: bytes):
    path = tmp_path / "events.jsonl"
    path.write_bytes(before)
    file = LineFile(path)
    file.append({"step": 2})
    file.append({"step": 3})
    file.close()
    torn = b"\n" if before and not before.endswith(b"\n") else b""
    assert path.read_bytes() == before + torn + b'{"step": 2}\n{"step": 3}\n'
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append({})


def test_a_row_after_a_half_written_one_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = LineFile(tmp_path / "events.jsonl")
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: whole(descriptor, line[:5]))
        with pytest.raises(OSError, match="No space left"):
            file.append({"step": 1})
    file.append({"step": 2})
    file.append({"step": 3})
    file.close()
    assert (tmp_path / "events.jsonl").read_bytes() == b'{"ste\n{"step": 2}\n{"step": 3}\n'


def test_one_row_has_the_time_of_now(tmp_path: Path):
    before = time.time()
    append_row(tmp_path / "events.jsonl", step=1, time=0.0)
    (found,) = read_rows(tmp_path / "events.jsonl")
    assert before <= found["time"] <= time.time()
    assert list(found) == ["step", "time"]


def test_what_is_no_row_is_left_out(tmp_path: Path):
    lines = ["", "3", "[1]", "null", "{", "[" * 100_000, '{"step": 1}', b'{"step": 2}', b"\xff"]
    assert list(parse_rows(lines)) == [{"step": 1}, {"step": 2}]
    (tmp_path / "link").symlink_to("/dev/zero")
    assert list(read_rows(tmp_path / "link")) == []


class Rows(Sink):
    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def event(self, row: dict[str, object]) -> None:
        self.rows.append(row)


def test_every_sink_gets_every_row_once_the_check_has_passed():
    first, second = Rows(), Rows()
    checks: list[int] = []
    log = EventLog("a", [first], check=lambda: checks.append(len(first.rows)))
    log.add(second)
    log.event(Kind.READY, 3, total_steps=9, seconds=float("-inf"))
    assert first.rows == second.rows
    (found,) = first.rows
    assert found == {
        "attempt": "a", "kind": "ready", "step": 3, "total_steps": 9, "seconds": None, "time": found["time"],
    }  # fmt: skip
    assert checks == [0]
    log.metrics({"step": 4})  # this sink takes events only
    assert (len(first.rows), checks) == (1, [0, 1])
    log.close()


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), LeaseLost("taken over")])
def test_a_row_without_a_lease_is_not_written(error: Exception, caplog: pytest.LogCaptureFixture):
    sink = Rows()

    def check() -> None:
        raise error

    log = EventLog("a", [sink], check)
    for step in (1, 2):
        with pytest.raises(LeaseLost) if isinstance(error, LeaseLost) else contextlib.nullcontext():
            log.event(Kind.READY, step)
    assert sink.rows == []
    assert caplog.text.count("the run folder cannot take rows") == (0 if isinstance(error, LeaseLost) else 1)
    assert log.last_step == 2


def test_the_failure_of_each_sink_is_logged_once(caplog: pytest.LogCaptureFixture):
    class Full(Rows):
        def event(self, row: dict[str, object]) -> None:
            raise OSError(28, "No space left on device")

    class Lost(Full):
        pass

    last = Rows()
    log = EventLog("a", [Full(), Lost(), last])
    for step in range(3):
        log.event(Kind.READY, step)
    assert [row["step"] for row in last.rows] == [0, 1, 2]
    assert sorted(record.message.partition(" ")[0] for record in caplog.records) == ["Full", "Lost"]


AGE = """
import time
from motionmae.runs.events import count_age_from_now, process_age
own = process_age()
time.sleep(0.05)
later = process_age()
count_age_from_now()
print(own, later, process_age())
"""


def test_the_age_of_a_process_is_that_of_the_kernel_until_it_takes_over():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", AGE], capture_output=True, text=True, check=True, cwd=ROOT)
    whole = time.monotonic() - began
    own, later, after = map(float, done.stdout.split())
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert 0 < own < whole + tick
    assert own + 0.05 - tick <= later < whole + tick
    assert 0 <= after < later


def test_phases_outside_steps_are_those_that_block_training_between_steps():
    assert [phase.value for phase in OUTSIDE_STEPS] == ["checkpoint", "memory_copy", "validation"]


def test_faults_have_the_names_that_people_use():
    assert {kind.value: name for kind, name in FAULTS.items()} == {
        "nonfinite": "step skipped", "corrupt_sample": "corrupt samples", "checkpoint_failed": "save failed",
        "checkpoint_damaged": "damaged checkpoint skipped", "hang": "hung", "rollback": "rolled back",
        "failure": "attempt failed",
    }  # fmt: skip
