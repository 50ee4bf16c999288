from motionmae.training.nonfinite import SkippedStep, count_skipped, may_roll_back, too_many_skipped
from motionmae.training.state import TrainState

LOSS = SkippedStep("loss", [3], [17, 42, 5, 6, 7])
BUDGET, WINDOW = 10, 1000  # as in motionmae/training/nonfinite.py


def test_one_more_than_the_budget_within_the_window_is_too_many():
    state = TrainState()
    for step in range(100, 100 + BUDGET):
        state.step = step
        assert not count_skipped(state, LOSS)
    state.step = 100 + WINDOW - 1
    assert count_skipped(state, LOSS)
    report = str(too_many_skipped(state, LOSS))
    assert f"in 11 of the last {WINDOW} steps" in report
    assert f"the loss of step {state.step} on rank 3, samples [17, 42, 5, 6, 7]" in report
    assert "rollback to an earlier checkpoint" not in report


def test_a_skipped_step_leaves_the_window_after_a_thousand_steps():
    for last, too_many in ((1099, True), (1100, False)):
        state = TrainState()
        for state.step in range(100, 110):
            assert not count_skipped(state, LOSS)
        state.step = last
        assert count_skipped(state, LOSS) == too_many
        assert len(state.recently_skipped) == (11 if too_many else 10)


def test_a_run_rolls_back_again_only_long_after_the_last_rollback():
    state = TrainState(data_step=5000)
    assert may_roll_back(state)
    state.rollbacks = [5000]
    state.data_step += 2 * WINDOW
    assert not may_roll_back(state)
    assert "also after a rollback to an earlier checkpoint" in str(too_many_skipped(state, LOSS))
    state.data_step += 1
    assert may_roll_back(state)


def test_rare_skipped_steps_never_exceed_the_budget():
    state = TrainState()
    for step in range(0, 1_000_000, WINDOW // BUDGET):
        state.step = step
        assert not count_skipped(state, LOSS)
    assert state.skipped == 1_000_000 * BUDGET // WINDOW
    assert len(state.recently_skipped) == BUDGET


def test_fp16_overflows_are_counted_but_do_not_stop_the_run():
    state = TrainState()
    for step in range(50):
        state.step = step
        count_skipped(state, SkippedStep("overflow", [], []))
    assert state.skipped == 50
    assert state.recently_skipped == []
