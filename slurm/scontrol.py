"""Ask Slurm's controller about jobs and nodes, and change jobs, on a login node or inside a job."""

import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

from motionmae.errors import UserError
from motionmae.text import join_lines, say

CONTROLLER_TIMEOUT = 600.0
"""Seconds to keep asking a controller that does not answer, for example because it restarts."""
_FAILED = ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
_ENDED = ("COMPLETED", *_FAILED, "GONE")


@dataclass(frozen=True)
class JobState:
    """State of a job in Slurm's terms. A comparison ignores the fields that ``--follow`` does not print."""

    name: str  # PENDING, RUNNING, COMPLETED, FAILED, ...; GONE if Slurm has forgotten the job
    detail: str = ""  # nodes of a running or ended job, or the reason why the job waits
    restarts: int = 0  # number of requeues
    exit_code: int | None = None  # of a job that has ended; None if unknown; 128 + signal number for a killed job
    out_of_time: bool = field(default=False, compare=False)  # the time limit has ended the job, or is ending it
    preempted: bool = field(default=False, compare=False)
    excluded: tuple[str, ...] = field(default=(), compare=False)  # nodes that the job must not use

    @property
    def active(self) -> bool:
        """Whether the job runs or waits in the queue."""
        return self.name not in _ENDED


def run_command(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Its status is 127 if the command is not installed, 124 without an answer within 60 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed on this machine")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "no answer within 60 s")


def show_job(job_id: str) -> JobState | None:
    """Query a job; return None if the controller does not answer or has forgotten the job."""
    line = run_command("scontrol", "show", "job", "-o", job_id).stdout
    return parse_job(line) if _value(line, "JobState") else None


def find_job(job_id: str) -> JobState:
    """Query a job from the controller, or from the accounting database. Raises UserError if Slurm does not answer.

    The controller forgets a job soon after its end. Some sites have no accounting database.
    """
    shown = run_command("scontrol", "show", "job", "-o", job_id)
    if shown.returncode == 0:
        return parse_job(shown.stdout)
    if "Invalid job id" not in shown.stderr:
        raise UserError(
            f"Slurm does not answer (`scontrol show job {job_id}`: {join_lines(shown.stderr)}): try again later"
        )
    accounted = run_command("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job_id)
    state, _, exit_code = accounted.stdout.strip().partition("|")
    return JobState(state.split()[0], exit_code=_exit_code(exit_code)) if state else JobState("GONE")


def queued_jobs(job_ids: Iterable[str]) -> dict[str, str] | None:
    """Return those jobs that run or wait, each with the reason why it waits ("None" if it runs).

    The queue is asked once. None means that Slurm is not installed or does not answer.
    """
    answer = run_command("squeue", "--noheader", "--format", "%i|%r", "--jobs", ",".join(job_ids))
    if answer.returncode and "Invalid job id" not in answer.stderr:  # its answer if all of them have left the queue
        return None
    rows = (line.strip().partition("|") for line in answer.stdout.splitlines())
    return {job: reason for job, _, reason in rows}


def parse_job(line: str) -> JobState:
    """Parse a line of ``scontrol show job -o``."""
    name, reason, excluded = (_value(line, key) for key in ("JobState", "Reason", "ExcNodeList"))
    return JobState(
        name,
        _value(line, "NodeList") if name == "RUNNING" or name in _ENDED else reason,
        int(_value(line, "Restarts") or 0),
        _exit_code(_value(line, "ExitCode")) if name in _ENDED else None,
        out_of_time=name == "TIMEOUT" or reason == "TimeLimit",
        preempted=bool(_value(line, "PreemptTime")),
        excluded=tuple(_parse_node_list(excluded)) if excluded else (),
    )


def _value(line: str, key: str) -> str:
    """Return the value of ``key=`` in a line of ``scontrol show``; empty if the key is missing or has no value."""
    found = re.search(rf"\b{key}=(\S*)", line)
    return found[1] if found and found[1] not in ("(null)", "None") else ""


def _exit_code(text: str) -> int | None:
    """Parse Slurm's STATUS:SIGNAL; None if ``text`` is empty."""
    status, _, signal_number = text.partition(":")
    if not signal_number:
        return None
    return 128 + int(signal_number) if int(signal_number) else int(status)


def requeue(job_id: str) -> bool:
    """Requeue a running job. Retries for CONTROLLER_TIMEOUT while the controller does not answer."""
    command = ("scontrol", "requeue", job_id)
    end = time.monotonic() + CONTROLLER_TIMEOUT
    while (answer := run_command(*command)).returncode != 0:
        if "nable to contact" not in answer.stderr or time.monotonic() > end:
            say(f"{' '.join(command)}: {join_lines(answer.stderr)}")
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
        states = _value(line, "State").replace("*", "+NOT_RESPONDING").split("+")
        if {"DOWN", "FAIL", "NOT_RESPONDING"} & set(states):
            reason = re.search(r"\bReason=(.*?)(?: \[|$)", line)
            found[_value(line, "NodeName")] = reason[1] if reason else "it does not answer"
    return found


def usable_nodes(partition: str) -> list[str]:
    states = "idle,mixed,alloc,comp,resv"
    return run_command("sinfo", "-h", "-N", "-p", partition, "-r", "-t", states, "-o", "%N").stdout.split()
