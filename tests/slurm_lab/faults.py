"""Faults of a cluster that strike a :class:`TrainingRun` in its lab, and their repairs."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from motionmae.runs.checkpoint_store import CheckpointStore
from slurm.scontrol import expand_nodes
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import TIMEOUT, TrainingRun, rank_processes


@dataclass(frozen=True)
class Damage:
    """Cost of a fault."""

    fault: str
    step: int
    """Last step before the fault."""
    lost: int
    """Steps that were repeated."""
    seconds: float
    """Time from the fault to the end of the next new step."""
    slurm_seconds: float
    """Part of this time until the processes of the next attempt start."""


def preempt(run: TrainingRun, node: str) -> None:
    """A job of higher priority takes all nodes for a second."""
    what = ["-p", "high", f"-N{run.lab.nodes}", "--exclusive", "-o", "/dev/null", "--wrap", "srun sleep 1"]
    assert run.lab.run("sbatch", "--parsable", *what).returncode == 0


def requeue(run: TrainingRun, node: str) -> None:
    """An administrator requeues the job: SIGTERM and no user signal."""
    run.lab.run("scontrol", "requeue", run.record.job_id)


def time_out(run: TrainingRun, node: str) -> None:
    """Set the time limit to one minute from now. The signal is due earlier than that, so Slurm sends it at once."""
    minutes = int(run.job()["RunTime"].split(":")[1]) + 1
    run.lab.run("scontrol", "update", f"jobid={run.record.job_id}", f"timelimit={minutes}")
    restarts = run.job()["Restarts"]
    run.wait(lambda: run.job()["Restarts"] != restarts, "Slurm to end the job")
    run.lab.run("scontrol", "update", f"jobid={run.record.job_id}", "timelimit=60")


def accept_changes(run: TrainingRun) -> None:
    """Requeue a job that Slurm 22.05 does not change, because it has lost a node and no accounting is configured."""
    if run.lab.run("scontrol", "update", f"jobid={run.record.job_id}", "timelimit=60").returncode != 0:
        requeue_and_wait(run)


def requeue_and_wait(run: TrainingRun) -> None:
    """Requeue the job, and wait until its next attempt takes a step."""
    before = run.attempts()
    requeue(run, "")
    _wait_for_attempt(run, before, "a step after the requeue")


def _wait_for_attempt(run: TrainingRun, before: set[str], what: str) -> None:
    """Wait until an attempt that is not in ``before`` takes a step, and repair drained nodes meanwhile."""

    def continued() -> bool:
        run.lab.resume_drained()  # a node that was cut off may be drained at any time after it has come back
        return any(row["attempt"] not in before for row in run.rows())

    run.wait(continued, what)


def set_down(run: TrainingRun, node: str) -> None:
    """An administrator sets a node down."""
    run.lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=broken")


def power_off(run: TrainingRun, node: str) -> None:
    """A node loses power."""
    run.lab.power_off(node)


def kill_slurmd(run: TrainingRun, node: str) -> None:
    """A node's slurmd dies; its ranks survive."""
    run.lab.kill_slurmd(node)


def unplug(run: TrainingRun, node: str) -> None:
    """A node's network cable is pulled; its ranks survive and can reach the run folder."""
    run.lab.unplug(node)


def kill_rank(run: TrainingRun, node: str) -> None:
    """The rank on a node is killed by -9."""
    os.kill(_rank_on(run, node), signal.SIGKILL)


def kill_in_write(run: TrainingRun, node: str) -> None:
    """All ranks are killed by -9 while a checkpoint is being written.

    The rank on ``node`` is killed first, before its part is written. Otherwise the other ranks could commit the
    checkpoint while Slurm ends them.
    """
    checkpoints, writes = run.path / "checkpoints", ".unfinished-[0-9]*-step-*"  # deleted checkpoints have another name
    processes = rank_processes(run.lab, run.record.job_id)  # looked up first, because a write is short
    victim = run.nodes().index(node)

    def half_written() -> bool:
        return any(not any(found.glob(f"optimizer-{victim:05d}-*")) for found in checkpoints.glob(writes))

    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if not half_written():
            time.sleep(0.0005)
            continue
        for process in processes.values():
            os.kill(process, signal.SIGSTOP)
        if half_written():
            os.kill(processes.pop(victim), signal.SIGKILL)
            time.sleep(1)
            for process in processes.values():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return
        for process in processes.values():
            os.kill(process, signal.SIGCONT)
    raise TimeoutError("no checkpoint was caught during its write")


def truncate(run: TrainingRun, node: str) -> None:
    """The newest checkpoint loses half of a file, as on a bad disk, and the rank on a node is killed."""
    run.wait(lambda: CheckpointStore(run.path / "checkpoints").complete(), "checkpoint")
    processes = rank_processes(run.lab, run.record.job_id).values()
    for process in processes:
        os.kill(process, signal.SIGSTOP)  # no newer checkpoint may be committed now
    file = max(run.newest_checkpoint().folder.glob("model-*"))
    os.truncate(file, file.stat().st_size // 2)
    os.kill(_rank_on(run, node), signal.SIGKILL)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def hang(run: TrainingRun, node: str) -> None:
    """The rank on a node stops without a word; its connections stay open."""
    os.kill(_rank_on(run, node), signal.SIGSTOP)


def damage_memory(run: TrainingRun, node: str) -> None:
    """The copies in the memory of a node lose half of a file, and the rank on it is killed."""
    processes = rank_processes(run.lab, run.record.job_id).values()
    for process in processes:
        os.kill(process, signal.SIGSTOP)  # no newer copy may be made now
    victim = _rank_on(run, node)
    for file in Path(f"/proc/{victim}/root/dev/shm").glob("**/*.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    os.kill(victim, signal.SIGKILL)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def lose_all_but_one(run: TrainingRun, node: str) -> None:
    """All nodes of the job lose power but the first, which runs the batch script."""
    for other in _others(run):
        run.lab.power_off(other)


def _others(run: TrainingRun) -> list[str]:
    host_list = run.job()["NodeList"]
    return expand_nodes(host_list)[1:]


def nothing(lab: Lab, node: str) -> None:
    """No repair."""


REPAIRS: dict[Callable[[TrainingRun, str], None], Callable[[Lab, str], object]] = {
    set_down: lambda lab, node: lab.run("scontrol", "update", f"nodename={node}", "state=resume"),
    power_off: lambda lab, node: lab.power_on(node),
    kill_slurmd: lambda lab, node: lab.start_slurmd(node),
    unplug: lambda lab, node: lab.plug(node),
    lose_all_but_one: lambda lab, node: lab.power_on_all(),
}
NAMES = {
    preempt: "preemption",
    requeue: "`scontrol requeue`",
    time_out: "time-out",
    set_down: "node set down",
    power_off: "node powered off",
    kill_slurmd: "slurmd killed",
    unplug: "cable pulled",
    kill_rank: "one rank killed by -9",
    kill_in_write: "killed by -9 while a checkpoint is written",
    truncate: "newest checkpoint truncated, one rank killed by -9",
    hang: "one rank hangs",
    damage_memory: "memory copies of a node truncated, one rank killed by -9",
    lose_all_but_one: "all nodes but one powered off",
}


def strike(run: TrainingRun, fault: Callable[[TrainingRun, str], None], node: str) -> Damage:
    """Strike ``node`` with ``fault``, wait until the run continues, repair the node, and return the cost."""
    if fault is time_out:
        accept_changes(run)
    before = run.attempts()
    struck = time.time()
    fault(run, node)
    if fault in (kill_in_write, truncate, damage_memory):  # these wait for the right moment first
        struck = time.time()
    if fault is time_out:  # Slurm checks time limits periodically
        struck = max(row["time"] for row in run.rows("events.jsonl") if row["kind"] == "preemption")
    damage = aftermath(run, NAMES[fault], struck, before)
    REPAIRS.get(fault, nothing)(run.lab, node)
    return damage


def aftermath(run: TrainingRun, name: str, since: float, before: set[str]) -> Damage:
    """Wait until an attempt that is not in ``before`` takes a step, and return the cost."""
    _wait_for_attempt(run, before, f"a step after {name}")
    rows = run.rows()
    first = next(row for row in rows if row["attempt"] not in before)
    last = max((row["step"] for row in rows if row["attempt"] in before), default=0)
    events = run.rows("events.jsonl")
    start = next(row for row in events if (row["attempt"], row["kind"]) == (first["attempt"], "start"))
    return Damage(name, last, last - first["step"] + 1, first["time"] - since, start["time"] - start["age"] - since)


def _rank_on(run: TrainingRun, node: str) -> int:
    return rank_processes(run.lab, run.record.job_id)[run.nodes().index(node)]
