"""Base class of callbacks."""

from motionmae.runs.events import Row


class Callback:
    """Extra work of a trainer. Every method does nothing unless a callback overrides it.

    Every rank has the same callbacks and calls each method after the same step. A callback may therefore use
    collectives.
    """

    def on_train_start(self) -> None:
        """The first step follows."""

    def on_log(self, row: Row) -> None:
        """A row of metrics was written, every ``log.every_steps``."""

    def on_save(self, step: int) -> None:
        """A checkpoint was committed. Training may have taken more steps than ``step``."""

    def on_train_end(self, step: int) -> None:
        """The last step is done and saved. Not called if the run stops earlier."""

    def close(self) -> None:
        """The attempt ends, by an error or not."""
