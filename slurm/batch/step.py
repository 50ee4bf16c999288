"""A job step: one srun, which starts the same processes on each of its nodes."""

import asyncio
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from motionmae.runs.history import START_VARIABLE
from motionmae.text import LINES, say
from slurm import scontrol
from slurm.batch.protocol import VARIABLE, Invitation

END_SECONDS = 3.0
"""Time that srun has to end after its processes were killed. It waits for ever for a node that does not answer."""


@dataclass
class Command:
    """The command of a step.

    ``--overlap`` lets steps share the CPUs, memory and GPUs of a node: a standby step stands beside the training step,
    and a step that Slurm has not yet ended does not keep the next one waiting. ``--no-kill`` leaves the step alone
    when Slurm notices that one of its nodes is down, which the supervisor has noticed before.
    """

    srun: Sequence[str]  # "srun" and its options
    program: Sequence[str]
    ranks_per_node: int = 1

    def on(self, nodes: Sequence[str], standby: bool) -> list[str]:
        """Return the command line of a step on ``nodes``."""
        options = ["--overlap", "--no-kill", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]
        options += [f"--ntasks={len(nodes) * self.ranks_per_node}", f"--ntasks-per-node={self.ranks_per_node}"]
        options.append("--distribution=block")
        name, *given = self.srun
        if standby and "--output" in given:
            place = given.index("--output") + 1
            given[place] = given[place].replace("%t", "standby_%N_%t")
        return [name, *given, *options, *self.program]


@dataclass
class Step:
    """A started step. ``changed`` of :meth:`start` is called after each message of srun and at its end."""

    launch: int
    nodes: list[str]
    standby: bool
    lines: list[str] = field(default_factory=list)  # srun's messages
    status: int | None = None  # of srun, once it has ended
    killed: bool = False
    stop_sent_at: float = -math.inf  # when its ranks were told to save and end
    _srun: asyncio.subprocess.Process | None = None
    _reader: "asyncio.Task[None] | None" = None

    async def start(self, command: Command, invitation: Invitation, start: int, changed: asyncio.Event) -> None:
        variables = {VARIABLE: invitation.model_dump_json(), START_VARIABLE: str(start)}
        self._srun = await asyncio.create_subprocess_exec(
            *command.on(self.nodes, self.standby),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ) | variables,
            limit=1 << 20,
        )
        self._reader = asyncio.create_task(self._read(changed))

    async def _read(self, changed: asyncio.Event) -> None:
        assert self._srun is not None
        assert self._srun.stderr is not None
        while text := await self._srun.stderr.readline():
            message = text.decode(errors="replace")
            if not self.killed:
                say(message, sys.stderr, keep=LINES, end="")
                self.lines.append(message.rstrip())
                changed.set()
        status = await self._srun.wait()
        self.status = 128 - status if status < 0 else status
        changed.set()

    @staticmethod
    def signal(job: str, number: int, name: str) -> None:
        """Send a signal to all processes of the step with Slurm's ``number``."""
        scontrol.run_command("scancel", f"--signal={name}", f"{job}.{number}")

    def kill(self, job: str, number: int | None) -> "asyncio.Task[None]":
        """Begin to kill the processes of the step; return a task that lasts until srun has ended.

        The signal is on its way when this method returns, even if the caller then blocks the event loop. ``number`` is
        Slurm's, None if no process told it.
        """
        self.killed = True
        sent = None
        if number is not None and self.status is None:
            sent = asyncio.get_running_loop().run_in_executor(None, self.signal, job, number, "KILL")
        return asyncio.create_task(self._killed(sent))

    async def _killed(self, sent: "asyncio.Future[None] | None") -> None:
        if sent is not None:
            await sent
        await self.end(END_SECONDS)

    async def end(self, seconds: float) -> None:
        """Wait until the processes, which were told to end, have ended; kill srun if it stays for ``seconds``."""
        if self._srun is None or self.status is not None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(self._srun.wait()), seconds)
        except TimeoutError:
            self._srun.kill()
            await self._srun.wait()  # a process that the event loop still watches at its end leads to a traceback
