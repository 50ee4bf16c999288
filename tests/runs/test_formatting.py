import pytest

from motionmae.runs.events import Kind
from motionmae.runs.formatting import counted, describe_figures, describe_kind, describe_row, duration, figures_of

ROW = {
    "epoch": 1.25, "loss": 0.5, "loss_space": 0.3, "loss_time": 0.2, "lr": 1e-3, "clips_per_second": 12.34,
    "data_wait_seconds": 0.25, "step_seconds": 1.0, "val_step": 100, "val_top1": 85.25, "val_loss_space": 0.3125,
}  # fmt: skip


def test_a_row_is_one_line_with_every_figure() -> None:
    assert describe_row(ROW, 249) == (
        "epoch 1.25  loss 0.5000 (space 0.3000, time 0.2000)  lr 1.00e-03  12.3 clips/s  data wait 25%  "
        "4 min 09 s left"  # a validation has printed its figures
    )
    plain = {key: value for key, value in ROW.items() if not key.startswith(("loss_", "val_top", "val_loss"))}
    assert describe_row(plain, 1) == ("epoch 1.25  loss 0.5000  lr 1.00e-03  12.3 clips/s  data wait 25%  1 s left")


def test_figures_of_a_validation() -> None:
    row = {"loss": 1.5, "top1": None, "top5": 95.0, "knn": 7.0, "explained_space": 0.3, "step": 4, "loss_time": 2.0}
    assert list(figures_of(row)) == ["loss", "top1", "top5", "knn", "explained_space", "loss_time"]
    assert describe_figures(figures_of(row)) == (
        "loss 1.5, top-1 unknown, top-5 95.0 %, k-NN 7.0 %, space explained 0.3, time loss 2"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (249, "4 min 09 s"), (3599, "59 min 59 s"),
        (3600, "1 h 00 min"), (86399, "23 h 59 min"), (86400, "1 d 00 h"), (2 * 86400 + 3 * 3600, "2 d 03 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_and_many() -> None:
    assert [counted(number, "rank") for number in (0, 1, 2, 1234)] == ["0 ranks", "1 rank", "2 ranks", "1,234 ranks"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"kind": Kind.PREEMPTION, "reason": "stopped"}, "stop requested"),
        ({"kind": Kind.PREEMPTION, "reason": "terminated"}, "stop requested"),
        ({"kind": Kind.PREEMPTION, "reason": "preempted"}, "preemption"),
        ({"kind": Kind.STOP, "reason": "stopped"}, "stop"),
        ({"kind": Kind.FIRST_STEP}, "first step"),
    ],
)
def test_a_stop_that_was_asked_for_is_no_preemption(row: dict[str, object], text: str) -> None:
    assert describe_kind(row) == text


def test_a_step_that_took_no_time_has_no_share_of_waiting() -> None:
    row = {**ROW, "step_seconds": 0.0, "data_wait_seconds": 0.0}
    assert "data wait 0%" in describe_row(row, 1)
    assert describe_figures({}) == ""
    assert describe_figures({"loss": 0.123456}) == "loss 0.1235"
