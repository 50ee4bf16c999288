"""Where the seconds from the start of a process to its first step go: what a restart costs."""

import time

from motionmae.runs.events import process_age


class StartupTimer:
    """Stops the time of one stage after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"imports": process_age()}
        """Of each stage in its order; the first began with the process."""
        self._began = time.perf_counter()

    def done(self, stage: str) -> None:
        """Say that what happened since the stage before was this one."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._began
        self._began = now
