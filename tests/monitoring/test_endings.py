from monitoring.catalogue import STATES
from monitoring.endings import ENDINGS
from motionmae.training.preemption import Outcome


def test_every_end_in_order_is_known_and_has_a_state_of_the_catalogue():
    assert set(ENDINGS) == {outcome.name for outcome in Outcome if outcome is not Outcome.FINISHED}
    assert {ending.state for ending in ENDINGS.values()} <= set(STATES)
