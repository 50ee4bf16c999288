from monitoring.metric_definitions import STATES
from motionmae.runs.end_reason import EndReason
from motionmae.runs.run_state import ENDINGS


def test_every_end_in_order_is_known_and_has_a_state_of_the_catalogue():
    assert set(ENDINGS) == {outcome.name for outcome in Outcome if outcome is not EndReason.FINISHED}
    assert {ending.state for ending in ENDINGS.values()} <= set(STATES)
