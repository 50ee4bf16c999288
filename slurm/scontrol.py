"""Ask Slurm's controller about jobs and nodes, and change jobs, on a login node or inside a job."""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

from motionmae.errors import UserError
from motionmae.text import join_lines, say

CONTROLLER_TIMEOUT = 600.0
"""Seconds to keep asking a controller that does not answer, for example because it restarts."""
_TRIES = 3
_FAILED = ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
_QUEUE = ("Partition", "Account", "QOS", "Reservation")
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
    cancelled: bool = field(default=False, compare=False)  # a person has cancelled the job, or it has just ended
    excluded: tuple[str, ...] = field(default=(), compare=False)  # nodes that the job must not use
    batch_host: str = field(default="", compare=False)  # node of the batch script
    seconds_left: float = field(default=float("inf"), compare=False)  # until the time limit of a running job
    nodes: int = field(default=0, compare=False)  # number of nodes that the job needs
    queue: dict[str, str] = field(default_factory=dict, compare=False)  # partition, account, qos, by option of sbatch

    @property
    def active(self) -> bool:
        """Whether the job runs or waits in the queue."""
        return self.name not in _ENDED


def run_command(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Its status is 127 if the machine has no such command, 124 without an answer within 60 s."""
    return _run(command)


def _run(
    command: Sequence[str], given: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=given, env=environment, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, PermissionError):
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
        cancelled=name in ("CANCELLED", "COMPLETING") and not reason and not _value(line, "PreemptTime"),
        excluded=tuple(expand_nodes(excluded)),
        batch_host=_value(line, "BatchHost"),
        seconds_left=_seconds_until(_value(line, "EndTime")) if name == "RUNNING" else float("inf"),
        nodes=int(re.split(r"\D", _value(line, "NumNodes"))[0] or 0),
        queue={key.lower(): value for key in _QUEUE if (value := _value(line, key))},
    )


def expand_nodes(host_list: str) -> list[str]:
    """Return the names in one of Slurm's host lists; empty for an empty text."""
    return _parse_node_list(host_list) if host_list else []


def _seconds_until(moment: str) -> float:
    """Return the seconds until a moment in Slurm's form; infinite if it is ``Unknown`` or ``UNLIMITED``."""
    try:
        return datetime.fromisoformat(moment).timestamp() - time.time()
    except ValueError:
        return float("inf")


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


def release(job_id: str) -> bool:
    """Let a job that is held start; return False if Slurm refuses."""
    return run_command("scontrol", "release", job_id).returncode == 0


def update(job_id: str, changes: Mapping[str, str]) -> bool:
    """Change a waiting job; return False if Slurm refuses. A busy controller is asked again.

    Slurm 22.05 also refuses while it waits for the accounting of a job that has lost a node, until its requeue is over.
    """
    settings = [f"{key}={value}" for key, value in changes.items()]
    for _ in range(_TRIES):
        answer = run_command("scontrol", "update", f"JobId={job_id}", *settings)
        if answer.returncode == 0 or not re.search("timed out|nable to contact|try again", answer.stderr):
            break
    return answer.returncode == 0


def waiting_jobs(name: str) -> list[str]:
    """Return the IDs of this user's waiting jobs of a name."""
    return run_command("squeue", "-h", "--me", "-n", name, "-t", "PENDING", "-o", "%i").stdout.split()


def cancel(*job_ids: str) -> bool:
    """Cancel jobs; return False if Slurm refuses."""
    return run_command("scancel", *job_ids).returncode == 0


def submit_script(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit a batch script; its job ID is on standard output. ``options`` take precedence over those of the script.

    Inside a job, sbatch would hand all variables to the new job, and Slurm does not overwrite each of them there, for
    example SLURM_RESTART_COUNT. The new job therefore gets none of the job's own variables.
    """
    inside = "SLURM_JOB_ID" in os.environ
    outer = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith("SLURM")}
    done = _run(["sbatch", "--parsable", *options], script, outer if inside else None)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.strip().partition(";")[0], done.stderr)


def batch_script(job_id: str) -> str:
    """Return the script that a job was submitted with; empty if Slurm does not give it."""
    shown = run_command("scontrol", "write", "batch_script", job_id, "-")
    return shown.stdout if shown.returncode == 0 else ""


def could_start(script: str, excluded: Sequence[str]) -> bool:
    """Return whether Slurm could start a job with this script on other nodes than those excluded.

    Slurm counts the nodes that are up, also those that are busy now, and knows what the script requires of them
    (partition, features, GPUs, memory). The answer takes milliseconds and queues nothing.
    """
    return submit_script(script, "--test-only", f"--exclude={','.join(excluded)}").returncode == 0


def down_nodes(nodes: Sequence[str], unresponsive: bool = True) -> dict[str, str]:
    """Return the nodes that Slurm found dead or an administrator set down, each with Slurm's reason.

    With ``unresponsive`` also those whose slurmd does not answer at the moment.
    """
    states_of_loss = {"DOWN", "FAIL", *(["NOT_RESPONDING"] if unresponsive else [])}
    found = {}
    for line in run_command("scontrol", "show", "node", "-o", ",".join(nodes)).stdout.splitlines():
        states = _value(line, "State").replace("*", "+NOT_RESPONDING").split("+")
        if states_of_loss & set(states):
            reason = re.search(r"\bReason=(.*?)(?: \[|$)", line)
            found[_value(line, "NodeName")] = reason[1] if reason else "it does not answer"
    return found


def usable_nodes(partition: str) -> list[str]:
    """Return the nodes of a partition that are up."""
    states = "idle,mixed,alloc,comp,resv"
    return run_command("sinfo", "-h", "-N", "-p", partition, "-r", "-t", states, "-o", "%N").stdout.split()
