"""Exception that users see as one sentence, without a traceback."""

from collections.abc import Mapping


class UserError(ValueError):
    """Bad input, in one sentence: what is wrong, where, and the remedy.

    Commands print the sentence and exit with status 2. Every other exception is a bug and keeps its traceback.

    Args:
        already_reported: true if rank 0 raises the same error. The message is then printed once.
    """

    def __init__(self, message: str, *, already_reported: bool = False) -> None:
        super().__init__(message)
        self.already_reported = already_reported


def check_limits(options: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise UserError if an attribute of ``options`` is outside its (lowest, highest) value."""
    for name, (lowest, highest) in limits.items():
        value = getattr(options, name)
        if not lowest <= value <= highest:
            raise UserError(f"--{name.replace('_', '-')} {value} is not possible: choose {lowest} to {highest}")
