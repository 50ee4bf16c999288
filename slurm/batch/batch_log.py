"""Messages of the batch script."""

import time

from motionmae.text import say


def log(message: str) -> None:
    """Print to the log of rank 0, which is also the log of the batch script."""
    say(f"{time.strftime('%H:%M:%S')} slurm: {message}")
