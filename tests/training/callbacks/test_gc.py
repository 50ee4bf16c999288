import gc
import weakref

from motionmae.training.callbacks.gc import synchronized_gc


class Knot:
    """Garbage that only the collector can find."""

    def __init__(self) -> None:
        self.self = self


def test_garbage_waits_for_the_step_at_which_all_collect():
    before = Knot()  # what is there already, is not looked at again
    with synchronized_gc():
        assert not gc.isenabled()
        knot = weakref.ref(Knot())
        leave_many_objects()
        assert knot() is not None
        gc.collect()
        assert knot() is None
        old = weakref.ref(before)
        del before
        gc.collect()
        assert old() is not None
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old() is None


def leave_many_objects() -> None:
    """More than the collector's thresholds would let pass."""
    for _ in range(5):
        [Knot() for _ in range(2_000)]
