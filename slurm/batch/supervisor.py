"""Supervisor of a job: the batch script runs this module, which keeps the run training inside the job's allocation.

An attempt is one job step. When an attempt fails, the next one starts at once on nodes that the job holds: in the
processes of a standby step, which have made their imports and wait at the roll call, or else in a new step. The policy
decides whether the run goes on here, by the queue, or not at all.
"""

import argparse
import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm import scontrol
from slurm.batch import excluded_nodes
from slurm.batch.batch_log import log
from slurm.batch.connections import own_address
from slurm.batch.node_choice import choose_nodes
from slurm.batch.protocol import Assignment, Invitation
from slurm.batch.requeue_policy import RequeuePolicy
from slurm.batch.roll_call import Member, RollCall, end
from slurm.batch.step import END_SECONDS, Command, Step
from slurm.batch.step_failure import Ended, Failure, failed_nodes, find_cause, find_failure

EXIT_SECONDS = 60.0
"""Time that srun has to end after all ranks have finished, if no node is lost."""
REPORT_SECONDS = 2.0
"""Time that the other ranks have to say why they end, after one rank has failed."""
HUNG_SECONDS = 0.5
"""The same after a hang: the other ranks hang, too, or their watchdogs have ended them by now."""
RESEND_SECONDS = 60.0
"""Time after which ranks that were told to save and end, and have not ended, are told again."""
MOST_BURNT_STEPS = 8
"""Empty steps at the start of a requeued job, at most."""
STOOD_STILL_SECONDS = 10.0
"""Time after which this process must have been stopped, as by `scontrol suspend`, or have waited for Slurm."""
_POLL_SECONDS = 1.0
_CONTROLLER_SECONDS = 15.0  # between two questions to Slurm's controller, which serves the whole site


@dataclass(frozen=True)
class Settings:
    """What the submission has decided for all attempts."""

    node_counts: tuple[int, ...]  # on which the run can train, the largest first
    standby: bool
    no_kill: bool  # the job keeps its other nodes when one is lost (sbatch --no-kill)
    heartbeat_seconds: int
    join_seconds: int  # from the first process of a step to the last
    hang_seconds: float  # for which a rank that trains may give no sign of life; 0: for ever


class Supervisor:
    """The attempts of a job from its start to its end or its next requeue."""

    def __init__(self, policy: RequeuePolicy, settings: Settings, command: Command, nodes: Sequence[str]) -> None:
        self.policy, self.settings, self.command, self.held = policy, settings, command, list(nodes)
        self.changed = asyncio.Event()
        self.roll_call = RollCall(settings.heartbeat_seconds, self.changed.set)
        self.launches = self.starts = 0
        self.first_step_id = 0
        self.standby: Step | None = None
        self.predecessors: list[Member] = []
        self._asked = self._listened = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, nodes: list[str]) -> int:
        """Run attempts until the run has ended, or the job is requeued; return the exit status of the job."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.policy.decide_at_time_limit)
        async with self.roll_call.listening(own_address(self.held)):
            while True:
                failure = await self.attempt(nodes)
                if failure is None:
                    return 0
                counts = self.settings.node_counts if self.settings.no_kill or not self.lost() else ()
                nodes = self.policy.decide(failure, self.lost(), counts)
                if not nodes:
                    await self.leave()
                    return failure.status
                self.starts += 1

    async def attempt(self, nodes: list[str]) -> Failure | None:
        """Train on ``nodes`` until the step ends or a rank fails; return the failure, if any."""
        step = await self.take_standby(nodes) or await self.launch(nodes, standby=False)
        step.nodes = nodes
        self.policy.begin(self.starts, nodes, step.launch, self.first_step_id + self.launches - 1)
        began, assigned, failure = time.monotonic(), False, None
        # srun also waits for the processes of a former standby step that were on a lost node and never trained
        while step.status is None and failure is None and not self.has_finished(step):
            members = self.members(step)
            if not assigned and len(members) == self.ranks(nodes):
                self.assign(members, nodes)
                assigned = True
            elif not assigned and members and time.monotonic() - began > self.settings.join_seconds:
                failure = self.absent(members, nodes)
            failure = failure or await self.failure(step) or self.silence(self.members(step))
            # again after a while: Slurm may refuse a signal to a step that has just lost a node
            if assigned and time.monotonic() - step.stop_sent_at > RESEND_SECONDS and await self.is_reduced(nodes):
                step.stop_sent_at = time.monotonic()
                await asyncio.to_thread(step.signal, self.policy.attempt.job, members[0].hello.step, "TERM")
            if any(member.trains for member in members):
                await self.start_standby(step)
            if failure is None and step.status is None:
                await self.wait()
        # with --no-kill, srun ends with 0 when Slurm has taken all of its nodes, whatever their ranks do
        taken = failed_nodes(step.lines)
        if failure is None and (self.has_finished(step) or (step.status == 0 and not taken)):
            await self.dismiss(step)
            return None
        self.discard(step)
        if failure is None and step.status == 0:
            failure = Failure(EndReason.NODE_DOWN, taken[0], EndReason.NODE_DOWN.exit_code)
        return failure or find_failure(step.lines)

    async def failure(self, step: Step) -> Failure | None:
        """Return why a rank has failed; None while all ranks work or have left with success.

        After the first failure the other ranks get REPORT_SECONDS to say why they end. If ranks merely lost each other,
        a node may be lost that is silent for not much longer than a heartbeat.
        """
        began = time.monotonic()
        limit = REPORT_SECONDS
        while members := self.members(step):
            if lost := next((member for member in members if member.lost), None):
                return Failure(EndReason.NODE_DOWN, lost.node)
            ended = sorted((m for m in members if m.ended_at), key=lambda member: member.ended_at)
            failed = [Ended(member.node, member.status) for member in ended if member.status != 0]
            if not failed:
                return None
            cause = find_cause(failed, step.lines)
            if cause is not None and cause.reason is EndReason.LOST_PEERS:
                limit = max(REPORT_SECONDS, self.settings.heartbeat_seconds + 1.0)
            elif cause is not None and cause.reason is EndReason.HUNG:
                limit = HUNG_SECONDS
            reported = len(ended) == len(members) and (cause is None or cause.reason is not EndReason.LOST_PEERS)
            late = time.monotonic() - began > limit or step.status is not None
            if late or (cause is not None and reported):
                return cause or Failure(EndReason.KILLED, failed[0].node, 128 + signal.SIGKILL)
            await self.wait(0.1)
        return None

    def silence(self, members: Sequence[Member]) -> Failure | None:
        """Return a hang if a rank gives no sign of life: it is stopped, or a library holds Python's lock.

        If other ranks wait for it, their watchdogs find the hang earlier, and write stack traces.
        """
        now, limit = time.monotonic(), self.settings.hang_seconds
        elapsed, self._listened = now - self._listened, now
        if elapsed > STOOD_STILL_SECONDS:
            for member in members:
                member.heard_at = now
        silent = [m for m in members if m.trains and not m.ended_at and now - m.heard_at > limit]
        if not limit or not silent:
            return None
        log(f"a rank on {silent[0].node} has given no sign of life for {now - silent[0].heard_at:.0f} s")
        return Failure(EndReason.HUNG, status=EndReason.HUNG.exit_code)

    async def is_reduced(self, nodes: Sequence[str]) -> bool:
        """Return whether Slurm has taken a node from this job: its slurmd does not answer, or an administrator did it.

        The ranks on such a node may still train, until slurmd answers again. The run saves and leaves the node. Slurm
        22.05 may go on to list the node among those of the job, so its state is asked as well.
        """
        if time.monotonic() - self._asked < _CONTROLLER_SECONDS:
            return False
        self._asked = time.monotonic()
        job = await asyncio.to_thread(scontrol.show_job, self.policy.attempt.job)
        if job is None or job.name != "RUNNING" or job.restarts != self.policy.attempt.restart:
            return False
        held = scontrol.expand_nodes(job.detail)
        needed = list(dict.fromkeys([*nodes, job.batch_host]))
        down = await asyncio.to_thread(scontrol.down_nodes, needed, unresponsive=False)
        taken = [node for node in needed if node not in held or node in down]
        if taken:
            log(f"Slurm has taken {', '.join(taken)} from this job: the ranks save, and the run goes on without")
        return bool(taken)

    def absent(self, members: Sequence[Member], nodes: Sequence[str]) -> Failure:
        """Return the failure of the first node whose processes have not all answered the roll call."""
        here = [member.node for member in members]
        node = next(node for node in nodes if here.count(node) < self.command.ranks_per_node)
        return Failure(EndReason.BAD_NODE, node, EndReason.BAD_NODE.exit_code)

    def ranks(self, nodes: Sequence[str]) -> int:
        return len(nodes) * self.command.ranks_per_node

    def members(self, step: Step) -> list[Member]:
        """Return the processes of a step that train, or are to train."""
        return [member for member in self.roll_call.of_launch(step.launch) if member.node in step.nodes]

    def has_finished(self, step: Step) -> bool:
        """Return whether all ranks have left with success."""
        members = self.members(step)
        return len(members) == self.ranks(step.nodes) and all(member.status == 0 for member in members)

    def idle(self, step: Step) -> list[Member]:
        """Return the processes of a former standby step that nobody needs."""
        return [member for member in self.roll_call.of_launch(step.launch) if member.node not in step.nodes]

    def assign(self, members: Sequence[Member], nodes: list[str]) -> None:
        """Tell each process its rank."""
        for member in members:
            rank = self.ranks(nodes[: nodes.index(member.node)]) + member.hello.local_rank
            earlier = [other.hello.process for other in self.predecessors if other.node == member.node]
            member.send(
                Assignment(
                    rank=rank,
                    ranks_per_node=self.command.ranks_per_node,
                    start=self.starts,
                    nodes=nodes,
                    predecessors=earlier,
                )
            )

    async def launch(self, nodes: list[str], standby: bool) -> Step:
        self.launches += 1
        step = Step(self.launches, nodes, standby)
        invitation = Invitation(
            host=self.roll_call.host,
            port=self.roll_call.port,
            token=self.roll_call.token,
            launch=step.launch,
            standby=standby,
            heartbeat_seconds=self.settings.heartbeat_seconds,
        )
        await step.start(self.command, invitation, self.starts, self.changed)
        return step

    async def start_standby(self, step: Step) -> None:
        """Start a standby step on all nodes that answer, once in an attempt, and end the idle processes of ``step``."""
        if not self.settings.standby or self.standby is not None:
            return
        end(self.idle(step))
        self.standby = await self.launch([node for node in self.held if node not in self.lost()], standby=True)

    async def take_standby(self, nodes: list[str]) -> Step | None:
        """Return the standby step if its processes wait on all ``nodes``."""
        step, self.standby = self.standby, None
        if step is None:
            return None
        waiting = [m for m in self.roll_call.of_launch(step.launch) if m.node in nodes and not m.gone]
        if step.status is None and len(waiting) == self.ranks(nodes):
            return step
        self.discard(step)
        return None

    def lost(self) -> set[str]:
        """Return the nodes that do not answer."""
        return {member.node for member in self.roll_call.members if member.lost}

    def discard(self, step: Step) -> None:
        """Kill what is left of a step in the background. Ranks that start on the same nodes make sure of it."""
        members = self.roll_call.of_launch(step.launch)
        self.predecessors = [*(m for m in self.predecessors if not m.gone), *members]
        number = next((member.hello.step for member in members), None)
        task = step.kill(self.policy.attempt.job, number)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def dismiss(self, step: Step) -> None:
        """End the idle processes of a run that has finished. Slurm ends what has not heard the message."""
        idle, ending = self.idle(step), [step]
        if self.standby is not None:
            idle += self.roll_call.of_launch(self.standby.launch)
            ending.append(self.standby)
        end(idle)
        seconds = END_SECONDS if self.lost() else EXIT_SECONDS
        await asyncio.gather(*(one.end(seconds) for one in ending))

    async def leave(self) -> None:
        """Kill what is left of all steps. A rank that hangs would keep Slurm waiting until its KillWait is over."""
        if self.standby is not None:
            self.discard(self.standby)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def wait(self, seconds: float = _POLL_SECONDS) -> None:
        """Wait until a member or a step changes, for at most ``seconds``."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), max(seconds, 0.01))
        self.changed.clear()


def main(argv: Sequence[str]) -> int:
    """Run the job and return its exit status."""
    arguments, command = parse(argv)
    run = Path(arguments.run)
    run.mkdir(parents=True, exist_ok=True)
    raise_file_limit()
    attempt = Attempt(job=os.environ["SLURM_JOB_ID"], restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    policy = RequeuePolicy(RunFolder(run), attempt, arguments.max_retries, arguments.signal_seconds)
    if (end_of_chain := policy.chain.take_over(policy.newest_step())) is not None:
        return end_of_chain.exit_code
    policy.log_lost_nodes()
    held = scontrol.expand_nodes(os.environ["SLURM_JOB_NODELIST"])
    counts = tuple(arguments.node_counts or [len(held)])
    nodes = first_nodes(policy, held, counts[:1])
    if not nodes:
        if policy.requeue():
            return 0
        nodes = held[: counts[0]]
    settings = Settings(
        counts,
        arguments.standby,
        arguments.no_kill,
        arguments.heartbeat_seconds,
        arguments.join_seconds,
        arguments.hang_seconds,
    )
    supervisor = Supervisor(policy, settings, command, held)
    supervisor.first_step_id = burn_step_ids(policy.attempts.last_step_id(attempt.job))
    with excluded_nodes.postponed_review(run, attempt.job, arguments.no_kill):
        status = asyncio.run(supervisor.run(nodes))
    if status == 0:
        policy.chain.close()
        excluded_nodes.cancel_review(attempt.job)
    return status


def first_nodes(policy: RequeuePolicy, held: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return the nodes of the first attempt; empty if the job must not use some of them, and other nodes are free."""
    failed = policy.attempts.excluded_nodes()
    if nodes := choose_nodes(held, failed, counts):
        return nodes
    avoided = policy.nodes_to_avoid()
    nodes = choose_nodes(held, avoided, counts)
    if not nodes:
        bad = ", ".join(node for node in held if node in avoided)
        log(f"this run failed before on {bad}: the job is requeued without these nodes")
    return nodes


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Command]:
    """Parse ``RUN OPTIONS -- srun OPTIONS -- PROGRAM``."""
    parser = argparse.ArgumentParser(prog="slurm.batch.supervisor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--max-retries", type=int, default=5)
    parser.add_argument("--node-counts", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument("--ntasks-per-node", type=int, default=1)
    parser.add_argument("--signal-seconds", type=int, default=0)
    parser.add_argument("--join-seconds", type=int, default=120)
    parser.add_argument("--heartbeat-seconds", type=int, default=5)
    parser.add_argument("--hang-seconds", type=float, default=0.0)
    parser.add_argument("--standby", action="store_true")
    parser.add_argument("--no-kill", action="store_true")
    own, command = _split(list(argv))
    srun, program = _split(command)
    arguments = parser.parse_args(own)
    return arguments, Command(srun, program, arguments.ntasks_per_node)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split words at the first ``--``."""
    place = words.index("--")
    return words[:place], words[place + 1 :]


def raise_file_limit() -> None:
    """Allow as many connections as the system does: each rank and each standby process has one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def burn_step_ids(last: int) -> int:
    """Start empty job steps, so that the next step has an ID that no previous attempt had; return that ID.

    Slurm 22.05 may deliver a late signal to a step with the ID of an old step. Two cases were seen: the srun of an old
    attempt on a node whose cable is plugged in again, and a busy controller that repeats an unanswered signal after a
    minute. ``last`` is the highest ID that the job used since it was queued before, -1 if none. Beyond MOST_BURNT_STEPS
    the IDs begin at 0 again, whose step is long over.
    """
    steps = last + 2 if last >= 0 else 0  # a standby step follows the last step of training
    steps = steps if steps <= MOST_BURNT_STEPS else 0
    for _ in range(steps):
        scontrol.run_command("srun", "--nodes=1", "--ntasks=1", "--output=/dev/null", "true")
    return steps


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
