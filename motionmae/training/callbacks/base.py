"""Base class of callbacks, and the callback that collects garbage."""

import gc

from motionmae.runs.events import Row


class Callback:
    """Base of the trainer's callbacks. Every method does nothing unless a subclass overrides it.

    Every rank has the same callbacks and calls each method after the same step: a callback may use collectives.
    """

    def on_train_start(self) -> None:
        """Run before the first step of the attempt."""

    def on_log(self, row: Row) -> None:
        """Run after a row of metrics is written, every ``log.every_steps``."""

    def on_save(self, step: int) -> None:
        """Run after the checkpoint of ``step`` is committed. The current step may be later."""

    def on_train_end(self, step: int) -> None:
        """Run after the last step is done and saved; not called if the run stops earlier."""

    def close(self) -> None:
        """Run at the end of the attempt, also after an error."""


class SynchronizedGc(Callback):
    """Callback that collects Python's garbage at each row of metrics, on all ranks at the same steps.

    By default each rank collects at a different step, and the other ranks wait in the next reduction. One collection of
    the half a million objects of torch and DeepSpeed takes 0.2 s. Objects that exist at the start of training are
    excluded (``gc.freeze``), and a collection then takes almost no time.
    """

    def __init__(self) -> None:
        self._active = self._was_enabled = False

    def on_train_start(self) -> None:
        self._active, self._was_enabled = True, gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_log(self, row: Row) -> None:
        gc.collect()

    def on_train_end(self, step: int) -> None:
        self.close()

    def close(self) -> None:
        if self._active:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
        self._active = False
