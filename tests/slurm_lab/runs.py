"""A training run in the lab, submitted with slurm/submit.py, and the state of its files."""

import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from slurm.job_state import JobRecord
from tests.slurm import tiny
from tests.slurm_lab.lab import Lab

if TYPE_CHECKING:
    from tests.slurm_lab.faults import Damage

SUBMIT = Path(__file__).resolve().parents[2] / "slurm/submit.py"
STEPS = 100
"""Enough steps for all faults of a scenario, if the network is slow while Slurm takes its time to notice one."""
CHECKPOINT_STEPS = 5
BATCH = 12
"""Divisible by 2 and 4 ranks, and by 3 ranks with another micro-batch."""
RATE = "400mbit"
"""Bandwidth of the network: a step takes about a quarter of a second without using the processor."""
SLOW_RATE = "40mbit"
"""Bandwidth while Slurm notices a fault, which takes half a minute to two minutes: few steps are taken."""
NO_STANDBY = "launch.standby=false"
"""Halves the processes that a run starts, in tests of something else: standby processes cost the machine imports."""
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
TIMEOUT = 420.0
"""Seconds; the machine may be busy with other tests."""


class TrainingRun:
    """A run in ``folder`` on ``lab``; ``shards`` is ``make_shards(folder, samples=12)``: 2 shards of 12 videos."""

    def __init__(
        self, lab: Lab, folder: Path, shards: Path, *argv: str, steps: int = STEPS, batch: int = BATCH
    ) -> None:
        self.lab, self.folder, self.steps = lab, folder, steps
        self.variables: dict[str, str] = {}  # of the shell that submits the run
        self.path = folder / "runs/demo"
        settings = [
            f"data.shards={shards}",
            f"optim.global_batch_size={batch}",
            f"optim.epochs={steps * batch // 24}",
            "engine.micro_batch_size=3",
            "engine.precision=fp32",
            "monitoring.enabled=false",
            f"checkpoint.every_steps={CHECKPOINT_STEPS}",
        ]
        flags = ["--config", "demo", "--ntasks-per-node", "1", "--time", "60", "--partition", "low"]
        self.command = [sys.executable, str(SUBMIT), *flags, *tiny.overrides(shards), *settings, *argv]
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, *argv: str) -> str:
        """Submit the run and return the printed text."""
        done = self.lab.run(*self.command, *argv, cwd=self.folder, env=self.variables, seconds=TIMEOUT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def record(self) -> JobRecord:
        """The job of the last submission."""
        record = JobRecord.read(self.path)
        assert record is not None
        return record

    def job(self) -> dict[str, str]:
        """Fields of `scontrol show job` for the job of the chain that is active, else for the last that began."""
        record = self.record
        jobs = [self.lab.job(job_id) for job_id in (record.job_id, *record.waiting)]
        active = [job for job in jobs if job.get("JobState") not in (*ENDS, "PREEMPTED", "NODE_FAIL")]
        return [*active, jobs[0]][0]

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Rows of metrics.jsonl or events.jsonl."""
        return tiny.rows(self.path, name)

    def attempts(self) -> set[str]:
        """IDs of all attempts."""
        return {row["attempt"] for row in self.rows("events.jsonl")}

    def nodes(self) -> list[str]:
        """Nodes of the newest attempt, rank 0's first."""
        starts = [row for row in self.rows("attempts.jsonl") if row["what"] == "start"]
        return list(starts[-1]["nodes"])

    def wait_for_steps(self, more: int) -> None:
        """Wait until the newest attempt has taken ``more`` steps."""
        self.wait(lambda: self._steps_of_newest() >= more, f"{more} steps of a new attempt")

    def wait(self, holds: Any, what: str) -> None:
        """Wait until ``holds()`` is true."""
        end = time.monotonic() + TIMEOUT
        while not holds():
            assert time.monotonic() < end, f"no {what} after {TIMEOUT} s\n{self.log()}"
            assert self.job().get("JobState") not in ENDS or holds(), f"the job ended before {what}\n{self.log()}"
            time.sleep(0.1)

    def finish(self) -> None:
        """Wait for the end and check that every step was logged."""
        self.wait(lambda: self.job().get("JobState") in ENDS, "end of the run")
        assert self.job()["JobState"] == "COMPLETED", self.log()
        assert sorted({row["step"] for row in self.rows()}) == list(range(1, self.steps + 1))

    def newest_checkpoint(self) -> Checkpoint:
        """The newest committed checkpoint."""
        return CheckpointStore(self.path / "checkpoints").complete()[-1]

    def tensors(self) -> dict[str, "np.ndarray[Any, Any]"]:
        """All weights and moments of the newest checkpoint."""
        newest = self.newest_checkpoint()
        assert newest.step == self.steps
        found: dict[str, np.ndarray[Any, Any]] = {}
        for file in newest.folder.glob("*.safetensors"):
            found.update({f"{file.name.split('-')[0]} {name}": value for name, value in load_file(file).items()})
        return found

    def losses(self) -> list[float]:
        """The loss of every step, from the last attempt that took the step."""
        return [loss for _, loss in sorted({row["step"]: row["loss"] for row in self.rows()}.items())]

    def log(self) -> str:
        """The job's fields and the last lines of the logs and events, for failure messages."""
        log, controller = Path(self.record.log), self.lab.folder / "log/slurmctld.log"
        events = "\n".join(map(str, self.rows("events.jsonl")[-12:]))
        printed = log.read_text(errors="replace")[-5000:] if log.exists() else "no log"
        return "\n---\n".join([str(self.job()), controller.read_text()[-3000:], printed, events])

    def _steps_of_newest(self) -> int:
        rows, starts = self.rows(), [row for row in self.rows("events.jsonl") if row["kind"] == "start"]
        newest = starts[-1]["attempt"] if starts else None
        return sum(row["attempt"] == newest for row in rows)


@dataclass
class RunResult:
    """Result of a run.

    Attributes:
        printed: text that commands printed.
    """

    tensors: dict[str, "np.ndarray[Any, Any]"]
    losses: list[float]
    damages: "list[Damage]"
    printed: dict[str, str]


def finish(run: TrainingRun, damages: "list[Damage]", printed: dict[str, str]) -> RunResult:
    """Wait for the end of the run, and return its result."""
    run.finish()
    return RunResult(run.tensors(), run.losses(), damages, printed)


def train_undisturbed(folder: Path, shards: Path) -> RunResult:
    """The reference, on two nodes."""
    with Lab(nodes=2, rate=RATE) as lab:
        run = TrainingRun(lab, folder, shards, "--nodes", "2", NO_STANDBY)
        run.submit()
        return finish(run, [], {})


def rank_processes(lab: Lab, job_id: str) -> dict[int, int]:
    """Process ID, as seen from outside the lab, of each rank of a job's current attempt.

    Ranks of an earlier attempt may survive on a node that was cut off. A rank's process is named ``rank1#2`` in the
    third attempt (start 2) since the job was queued; a standby process has another name.
    """
    restarts = lab.job(job_id)["Restarts"].encode()
    mine = {f"SLURM_CONF={lab.folder}/slurm.conf".encode(), f"SLURM_JOB_ID={job_id}".encode()}
    found: dict[int, dict[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            name = re.fullmatch(r"rank(\d+)#(\d+)\n", (path / "comm").read_text())
            if name is None:
                continue
            variables = (path / "environ").read_bytes().split(b"\0")
            counts = [v.partition(b"=")[2] for v in variables if v.startswith(b"SLURM_RESTART_COUNT=")] or [b"0"]
            if mine <= set(variables) and counts == [restarts]:
                found.setdefault(int(name[2]), {})[int(name[1])] = int(path.name)
    return found[max(found)] if found else {}
