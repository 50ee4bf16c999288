"""What every tracker does: each step is sent once, and lacking rows are sent again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, JsonLines
from motionmae.training.trackers.base import Tracker, new_id, numbers, open_tracker
from tests.monitoring.runs import metrics_row


class Tool(Tracker):
    """A tracker that keeps what it is sent."""

    def __init__(self, run_id: str = "mine", stored_step: int = 0) -> None:
        self.run_id, self.stored_step = run_id, stored_step
        self.sent: list[tuple[int, float]] = []
        self.pictures: list[tuple[str, int, str]] = []

    def send(self, row: dict[str, Any]) -> None:
        self.sent.append((row["step"], row["loss"]))

    def picture(self, path: Path, step: int, title: str) -> None:
        self.pictures.append((str(path), step, title))


def folder_with_rows(tmp_path: Path) -> RunFolder:
    """Two attempts, the second from step 1 on, and a row that is not one of metrics."""
    folder = RunFolder(tmp_path)
    folder.create()
    for attempt, steps in (("a", (1, 2, 3)), ("b", (2, 3, 4, 5))):
        log = EventLog(attempt, [JsonLines(folder.events, folder.metrics)])
        for step in steps:
            log.metrics(metrics_row(step, loss=10.0 * step + (attempt == "b")))
        log.close()
    with folder.metrics.open("a") as file:
        file.write(json.dumps({"attempt": "b", "step": "six", "time": 1.0}) + "\n")
    return folder


def opener(tool: Tool, known: list[str]) -> Callable[[Config, RunFolder, str], Tracker]:
    def open_(config: Config, folder: RunFolder, run_id: str) -> Tracker:
        known.append(run_id)
        return tool

    return open_


def test_a_step_is_sent_once():
    tool = Tool(stored_step=2)
    for step in (1, 2, 3, 3, 2, 4):
        tool.metrics({"step": step, "loss": 0.5})
    assert tool.sent == [(3, 0.5), (4, 0.5)]
    assert tool.stored_step == 4


def test_the_last_attempt_says_what_a_step_was_and_no_later_step_is_sent(tmp_path: Path):
    tool = Tool(stored_step=1)
    tool.replay(folder_with_rows(tmp_path).metrics, until=4)
    assert tool.sent == [(2, 21.0), (3, 31.0), (4, 41.0)]


def test_pictures_have_a_title_and_failed_ones_are_left_out():
    tool = Tool()
    for row in ({"path": "a.png", "title": "confusion"}, {"path": "b.png"}, {"error": "no checkpoint"}):
        tool.event({"kind": "picture", "step": 3, **row})
    tool.event({"kind": "checkpoint", "step": 4, "path": "step-4"})
    assert tool.pictures == [("a.png", 3, "confusion"), ("b.png", 3, "reconstruction")]


def test_numbers_are_drawn_over_their_step():
    row = {"attempt": "a", "step": 3, "time": 1.5, "loss": 0.5, "grad_norm": None, "lr": 0, "kind": "x"}
    assert numbers(row) == {"loss": 0.5, "lr": 0}


def test_ids_are_new_each_time():
    assert len({new_id() for _ in range(3)}) == 3
    assert all(len(new_id()) == 16 for _ in range(3))


def test_the_id_of_a_resumed_run_is_given_to_the_tool_and_a_new_one_is_kept(tmp_path: Path):
    folder, known = folder_with_rows(tmp_path), []
    folder.trackers.write_text(json.dumps({"tool": "old", "other": "theirs"}))
    resumed = Tool("old")
    assert open_tracker("tool", opener(resumed, known), Config(), folder, 5) is resumed
    assert [step for step, _ in resumed.sent] == [1, 2, 3, 4, 5]
    assert json.loads(folder.trackers.read_text()) == {"tool": "old", "other": "theirs"}
    new = Tool("new")
    assert open_tracker("tool", opener(new, known), Config(), folder, 0) is new
    assert known == ["old", ""]  # another run of the same name does not continue it
    assert new.sent == []
    assert json.loads(folder.trackers.read_text()) == {"tool": "new", "other": "theirs"}


def test_a_damaged_file_of_ids_is_replaced(tmp_path: Path):
    folder, known = folder_with_rows(tmp_path), []
    folder.trackers.write_text("{")
    assert open_tracker("tool", opener(Tool("new"), known), Config(), folder, 5)
    assert known == [""]
    assert json.loads(folder.trackers.read_text()) == {"tool": "new"}


@pytest.mark.parametrize(("error", "text"), [(OSError("no answer"), r"log.tool could not start \(no answer\): correct"),
                                             (UserError("no key"), "^no key$")])  # fmt: skip
def test_only_a_new_run_is_stopped_by_a_tool(
    error: Exception, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def fail(*_: Any) -> Tracker:
        raise error

    folder = folder_with_rows(tmp_path)
    with pytest.raises(UserError, match=text):
        open_tracker("tool", fail, Config(), folder, 0)
    assert caplog.text == ""
    assert open_tracker("tool", fail, Config(), folder, 1) is None
    assert "a later attempt sends all rows" in caplog.text
    assert not folder.trackers.exists()
