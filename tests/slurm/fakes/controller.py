"""Slurm's controller for tests in one process: it notes every command, and answers as the test has said."""

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm.attempt_log import AttemptLog

RUNNING = "JobState=RUNNING Restarts=0 NodeList=node[1-3] NumNodes=2 BatchHost=node1 Partition=low Account=vision"
PENDING = "JobState=PENDING Restarts=1 NodeList=(null) NumNodes=2 Partition=low Account=vision ExcNodeList="
NO_ANSWER = (1, "", "Unable to contact slurm controller")
REFUSED = (1, "", "Access denied")
Answer = tuple[int, str, str]


class Controller:
    """Answers by the beginning of a command, the longest first; a list of answers is used up to its last one."""

    def __init__(self) -> None:
        self.answers: dict[str, str | Answer | list[str | Answer]] = {}
        self.calls: list[str] = []
        self.scripts: list[str] = []
        self.environments: list[dict[str, str] | None] = []

    def run(
        self, command: Sequence[str], given: str | None = None, environment: dict[str, str] | None = None
    ) -> CompletedProcess[str]:
        line = " ".join(command)
        self.calls.append(line)
        if given is not None:
            self.scripts.append(given)
            self.environments.append(environment)
        key = max((key for key in self.answers if line.startswith(key)), key=len, default="")
        answer = self.answers.get(key, "")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        status, out, error = (0, answer, "") if isinstance(answer, str) else answer
        return CompletedProcess(command, status, out, error)

    def called(self, program: str) -> list[str]:
        """The commands that begin so."""
        return [line for line in self.calls if line.startswith(program)]


def fail_on(run: Path, *nodes: str, job: str = "7") -> None:
    """Log a failed pre-flight check on each node, the first the longest ago."""
    for number, node in enumerate(nodes):
        AttemptLog(run).log_failure(Attempt(job=job, restart=0, start=number), EndReason.BAD_NODE, 0, node)
