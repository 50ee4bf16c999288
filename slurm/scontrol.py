"""What is asked of Slurm's controller, from a login node or from inside a job."""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from submitit.slurm.slurm import _parse_node_list

PATIENCE = 600.0
"""Seconds in which a controller that restarts should answer again."""


@dataclass(frozen=True)
class QueuedJob:
    """What ``scontrol show job`` says of a job that has not been forgotten."""

    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it waits or ended."""
    restarts: int
    """How often it was queued again."""
    preempted: bool
    """Whether it was told to make room for another job."""
    excluded: tuple[str, ...]
    """Nodes it may not run on."""

    @property
    def out_of_time(self) -> bool:
        """Whether it ended, or ends, because of its time limit."""
        return self.state == "TIMEOUT" or self.reason == "TimeLimit"


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; status 127 where there is none, 124 where it does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"there is no {command[0]} on this machine")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "no answer within 60 s")


def field(line: str, key: str) -> str:
    """The value of ``key=`` in one line of ``scontrol show``; empty if it is not there."""
    found = re.search(rf"\b{key}=(\S*)", line)
    return found.group(1) if found else ""


def show(job_id: str) -> QueuedJob | None:
    """The job as the controller knows it; None if it does not answer or has forgotten it."""
    line = ask("scontrol", "show", "job", "-o", job_id).stdout
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
    """Queue a running job again; keeps asking while the controller does not answer."""
    return _patiently("scontrol", "requeue", job_id)


def update(job_id: str, changes: Mapping[str, str]) -> bool:
    """Change a waiting job."""
    return ask("scontrol", "update", f"JobId={job_id}", *(f"{k}={v}" for k, v in changes.items())).returncode == 0


def down_nodes(nodes: Sequence[str]) -> dict[str, str]:
    """Those of ``nodes`` that Slurm has found dead or that an administrator has set down, with Slurm's reason."""
    found = {}
    for line in ask("scontrol", "show", "node", "-o", ",".join(nodes)).stdout.splitlines():
        states = field(line, "State").replace("*", "+NOT_RESPONDING").split("+")
        if {"DOWN", "FAIL", "NOT_RESPONDING"} & set(states):
            reason = re.search(r"\bReason=(.*?)(?: \[|$)", line)
            found[field(line, "NodeName")] = reason.group(1) if reason else "it does not answer"
    return found


def partition_nodes(partition: str) -> list[str]:
    """Nodes of a partition that run jobs or could."""
    shown = ask("sinfo", "-h", "-N", "-p", partition, "-r", "-t", "idle,mixed,alloc,comp,resv", "-o", "%N").stdout
    return shown.split()


def _patiently(*command: str) -> bool:
    end = time.monotonic() + PATIENCE
    while (answer := ask(*command)).returncode != 0:
        if "nable to contact" not in answer.stderr or time.monotonic() > end:
            print(f"{' '.join(command)}: {answer.stderr.strip()}", flush=True)
            return False
        time.sleep(5)
    return True
