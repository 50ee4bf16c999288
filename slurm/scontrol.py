"""Queries and requests to Slurm's controller, from a login node or from inside a job."""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from submitit.slurm.slurm import _parse_node_list

CONTROLLER_TIMEOUT = 600.0
"""Seconds to keep asking a controller that does not answer, for example because it restarts."""


@dataclass(frozen=True)
class QueuedJob:
    """Fields of a job in the output of ``scontrol show job``."""

    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why the job waits or ended
    restarts: int  # number of requeues
    preempted: bool
    excluded: tuple[str, ...]  # nodes of ExcNodeList

    @property
    def out_of_time(self) -> bool:
        """Whether the job ended, or is ending, because of its time limit."""
        return self.state == "TIMEOUT" or self.reason == "TimeLimit"


def run_command(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Its status is 127 if the command is not installed, 124 without an answer within 60 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed on this machine")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "no answer within 60 s")


def field(line: str, key: str) -> str:
    """Return the value of ``key=`` in a line of ``scontrol show``; empty if the key is missing."""
    found = re.search(rf"\b{key}=(\S*)", line)
    return found.group(1) if found else ""


def show(job_id: str) -> QueuedJob | None:
    """Query a job; return None if the controller does not answer or has forgotten the job."""
    line = run_command("scontrol", "show", "job", "-o", job_id).stdout
    if not field(line, "JobState"):
        return None
    excluded = field(line, "ExcNodeList")
    return QueuedJob(
        field(line, "JobState"),
        field(line, "Reason"),
        int(field(line, "Restarts") or 0),
        field(line, "PreemptTime") not in ("", "None"),
        tuple(_parse_node_list(excluded)) if excluded not in ("", "(null)") else (),
    )


def requeue(job_id: str) -> bool:
    """Requeue a running job. Retries for CONTROLLER_TIMEOUT while the controller does not answer."""
    command = ("scontrol", "requeue", job_id)
    end = time.monotonic() + CONTROLLER_TIMEOUT
    while (answer := run_command(*command)).returncode != 0:
        if "nable to contact" not in answer.stderr or time.monotonic() > end:
            print(f"{' '.join(command)}: {answer.stderr.strip()}", flush=True)
            return False
        time.sleep(5)
    return True


def update(job_id: str, changes: Mapping[str, str]) -> bool:
    """Change a waiting job; return False if Slurm refuses."""
    settings = [f"{key}={value}" for key, value in changes.items()]
    return run_command("scontrol", "update", f"JobId={job_id}", *settings).returncode == 0


def down_nodes(nodes: Sequence[str]) -> dict[str, str]:
    """Return the nodes that Slurm found dead or an administrator set down, each with Slurm's reason."""
    found = {}
    for line in run_command("scontrol", "show", "node", "-o", ",".join(nodes)).stdout.splitlines():
        states = field(line, "State").replace("*", "+NOT_RESPONDING").split("+")
        if {"DOWN", "FAIL", "NOT_RESPONDING"} & set(states):
            reason = re.search(r"\bReason=(.*?)(?: \[|$)", line)
            found[field(line, "NodeName")] = reason.group(1) if reason else "it does not answer"
    return found


def usable_nodes(partition: str) -> list[str]:
    states = "idle,mixed,alloc,comp,resv"
    return run_command("sinfo", "-h", "-N", "-p", partition, "-r", "-t", states, "-o", "%N").stdout.split()
