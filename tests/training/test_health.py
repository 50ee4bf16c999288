import pytest

from motionmae.errors import UserError
from motionmae.training.health import BUDGET, WINDOW, BadStep, count
from motionmae.training.state import TrainState

LOSS = BadStep("loss", [3], [17, 42, 5, 6, 7])


def test_one_more_than_the_budget_within_the_window_stops_the_run():
    state = TrainState()
    for step in range(100, 100 + BUDGET):
        state.step = step
        count(state, LOSS)
    state.step = 100 + WINDOW - 1
    with pytest.raises(UserError) as report:
        count(state, LOSS)
    assert f"in 11 of the last {WINDOW} steps" in str(report.value)
    assert f"the loss of step {state.step} on rank 3, samples [17, 42, 5, 6]" in str(report.value)


def test_rare_bad_steps_never_add_up():
    state = TrainState()
    for step in range(0, 1_000_000, WINDOW // BUDGET):
        state.step = step
        count(state, LOSS)
    assert state.skipped == 1_000_000 * BUDGET // WINDOW
    assert len(state.recently_skipped) == BUDGET


def test_fp16_overflows_are_counted_but_do_not_stop_the_run():
    state = TrainState()
    for step in range(50):
        state.step = step
        count(state, BadStep("overflow", [], []))
    assert state.skipped == 50
    assert state.recently_skipped == []
