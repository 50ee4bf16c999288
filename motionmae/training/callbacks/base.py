"""The protocol of callbacks."""

from typing import Protocol

from motionmae.runs.events import Row


class Callback(Protocol):
    """Extra work of a trainer. Every method does nothing unless a callback overrides it.

    Every rank has the same callbacks and calls each method after the same step. A callback may therefore use
    collectives.
    """

    def on_train_start(self) -> None:
        """The first step follows."""
        return

    def on_log(self, row: Row) -> None:
        """A row of metrics was written, every ``log.every_steps``."""
        return

    def on_save(self, step: int) -> None:
        """A checkpoint was committed; training may be further than its ``step``."""
        return

    def on_train_end(self, step: int) -> None:
        """The last step is done and saved. Not called if the run stops earlier."""
        return

    def close(self) -> None:
        """The attempt ends, by an error or not."""
        return
