"""Jobs without torch, so that a test of the controller starts its ranks in a second."""

import os
import signal
import sys
import time
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable

from slurm.local import RESTARTS_VARIABLE, SIGNALS


class Scripted(Checkpointable):
    """Each rank notes its start in ``folder`` and does the next of its ``acts``; the last is repeated.

    Acts: ``done``; ``exit N``; ``wait``: for one of the two signals, which is answered as a training rank does.
    """

    def __init__(self, folder: Path, acts: dict[int, list[str]]) -> None:
        self.folder, self.acts = folder, acts

    def __call__(self) -> str:
        environment = submitit.JobEnvironment()
        rank = environment.global_rank
        requeue = signal.getsignal(signal.SIGUSR2)
        asked: list[int] = []
        for number in SIGNALS:
            signal.signal(number, lambda number, _: asked.append(number))
        attempt = int(os.environ[RESTARTS_VARIABLE])
        with (self.folder / f"starts_{rank}").open("a") as file:
            file.write(f"{attempt}\n")
        act, _, number_text = self.acts[rank][min(attempt, len(self.acts[rank]) - 1)].partition(" ")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while act == "wait" and not asked:
            time.sleep(0.05)
        if act == "exit":
            sys.exit(int(number_text))
        if asked and rank != 0:
            sys.exit(0)
        if asked == [signal.SIGUSR2]:
            requeue(signal.SIGUSR2, None)
        if asked:
            sys.exit(143)
        return act
