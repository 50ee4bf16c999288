"""Identity of one start of a run."""

import os
import secrets
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One start of a run, from its first process to its last. Every requeue starts a new attempt.

    Code that knows only the lease, or only Slurm, leaves the other fields at their defaults.
    """

    number: int = 0
    """Fencing number of the lease: 1 for the first attempt, higher for newer attempts."""
    id: str = ""
    """Value of "attempt" in the rows of events.jsonl and metrics.jsonl. Ids of newer attempts sort later."""
    host: str = ""
    """Host of rank 0."""
    job: str = ""
    """Slurm's job id; empty without Slurm."""
    restart: int = 0
    """Slurm's count of the job's restarts."""

    @classmethod
    def begin(cls, number: int) -> "Attempt":
        """Return a new attempt on this host, with a fresh id."""
        identity = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        job, restart = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        return cls(number, identity, socket.gethostname(), job, restart)
