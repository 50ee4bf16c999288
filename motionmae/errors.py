"""The one exception that is shown to people as a sentence instead of a traceback."""


class UserError(ValueError):
    """Bad input: one clear sentence that says what is wrong, where, and the remedy.

    Command-line entry points print it after ``error:`` and exit with status 2; everything else is a bug and keeps
    its traceback.

    Args:
        message: the sentence.
        already_reported: this rank raises what rank 0 raises too, so a command line that shares its terminal stays silent.
    """

    def __init__(self, message: str, *, already_reported: bool = False) -> None:
        super().__init__(message)
        self.already_reported = already_reported
