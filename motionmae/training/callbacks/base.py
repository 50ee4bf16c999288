"""Base class of callbacks."""

from motionmae.runs.events import Row


class Callback:
    """Base of the trainer's callbacks. Every method does nothing unless a subclass overrides it.

    Every rank has the same callbacks and calls each method after the same step. A callback may therefore use
    collectives.
    """

    def on_train_start(self) -> None:
        """Run before the first step of the attempt."""

    def on_log(self, row: Row) -> None:
        """Run after a row of metrics is written, every ``log.every_steps``."""

    def on_save(self, step: int) -> None:
        """Run after the checkpoint of ``step`` is committed. Training may have taken more steps by then."""

    def on_train_end(self, step: int) -> None:
        """Run after the last step is done and saved, but not if the run stops earlier."""

    def close(self) -> None:
        """Run at the end of the attempt, also after an error."""
