import pytest

from motionmae.runs.formatting import duration
from motionmae.training.callbacks.base import ProgressLine

ROW = {
    "step": 10,
    "epoch": 0.25,
    "loss": 0.81234,
    "loss_space": 0.5,
    "loss_time": 0.31234,
    "lr": 1.5e-4,
    "clips_per_second": 123.45,
    "step_seconds": 2.0,
    "data_wait_seconds": 0.5,
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 00 s"), (249, "4 min 09 s"), (11220, "3 h 07 min"), (183_600, "2 d 03 h")],
)
def test_durations_read_well(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_log_file_gets_a_plain_line_a_row(capsys: pytest.CaptureFixture[str]):
    line = ProgressLine(40, enabled=True)
    line.on_log(ROW)
    line.on_log({**ROW, "step": 20, "step_seconds": 4.0})
    line.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step 10/40  epoch 0.25  loss 0.8123 (space 0.5000, time 0.3123)  lr 1.50e-04  "
        "123.5 clips/s  data wait 25%  1 min 00 s left"
    )
    assert second.endswith("48 s left")  # 20 steps at 0.8 * 2 + 0.2 * 4 seconds


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]):
    line = ProgressLine(40, enabled=False)
    line.on_log(ROW)
    line.log("a message")
    line.close()
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_and_messages_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat its output as a terminal
    monkeypatch.setenv("COLUMNS", "200")
    line = ProgressLine(40, enabled=True)
    line.on_log(ROW)
    line.log("a message")
    line.close()
    shown = capsys.readouterr().out
    assert "10/40" in shown
    assert "loss 0.8123" in shown
    assert "a message" in shown
