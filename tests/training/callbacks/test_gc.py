import gc
import weakref

from motionmae.training.callbacks.base import SynchronizedGc


class Knot:
    """A reference cycle, which only the collector frees."""

    def __init__(self) -> None:
        self.self = self


def test_garbage_is_collected_at_rows_of_metrics_only():
    before = Knot()  # existed at the start: excluded
    callback = SynchronizedGc()
    callback.on_train_start()
    assert not gc.isenabled()
    knot = weakref.ref(Knot())
    leave_many_objects()
    assert knot() is not None
    callback.on_log({})
    assert knot() is None
    old = weakref.ref(before)
    del before
    callback.on_log({})
    assert old() is not None
    callback.close()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old() is None


def leave_many_objects() -> None:
    """Create more objects than the collector's thresholds allow."""
    for _ in range(5):
        [Knot() for _ in range(2_000)]
