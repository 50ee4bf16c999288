"""The one exception that is shown to people as a sentence instead of a traceback."""


class UserError(ValueError):
    """Bad input: one clear sentence that says what is wrong, where, and the remedy.

    Command-line entry points print it after ``error:`` and exit with status 2; everything else is a bug and keeps
    its traceback.
    """
