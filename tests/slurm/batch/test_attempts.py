"""Decisions of the supervisor without processes: which nodes, which ranks, and when Slurm is asked."""

import asyncio
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from motionmae.json_text import parse_json
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm.batch import supervisor as module
from slurm.batch.protocol import Assignment, Hello, Process
from slurm.batch.requeue_policy import RequeuePolicy
from slurm.batch.roll_call import Member
from slurm.batch.step import Command, Step
from slurm.batch.step_failure import Failure
from slurm.batch.supervisor import Settings, Supervisor, burn_step_ids, first_nodes, parse, raise_file_limit
from tests.slurm.fakes.controller import RUNNING, Controller, fail_on

SHOW = "scontrol show job -o 7"
SHOW_NODES = "scontrol show node -o node1,node2"
UP = "NodeName=node1 State=MIXED\nNodeName=node2 State=MIXED"
KILLED_STATUS = 128 + signal.SIGKILL


@dataclass
class Wire:
    """The connection to a member: what the supervisor wrote to it."""

    lines: list[bytes] = field(default_factory=list)

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def assignments(self) -> list[Assignment]:
        return [parse_json(line, Assignment) for line in self.lines]


def _member(node: int, local_rank: int = 0, launch: int = 1, **values: Any) -> Member:
    process = Process(pid=100 * node + 10 * local_rank + launch, began=1)
    hello = Hello(
        node=f"node{node}", launch=launch, step=4, local_rank=local_rank, process=process, nonce="0" * 64,
        proof="0" * 64,
    )  # fmt: skip
    return Member(hello, Wire(), **values)  # type: ignore[arg-type]


@pytest.fixture
def policy(tmp_path: Path, controller: Controller) -> RequeuePolicy:
    return RequeuePolicy(RunFolder(tmp_path), Attempt(job="7", restart=0), 5)


def _supervisor(policy: RequeuePolicy, *members: Member, ranks: int = 1, standby: bool = False) -> Supervisor:
    settings = Settings((2,), standby, no_kill=True, heartbeat_seconds=1, join_seconds=60, hang_seconds=30)
    supervisor = Supervisor(policy, settings, Command(["srun"], ["true"], ranks), ["node1", "node2", "node3"])
    supervisor.roll_call.members += members
    return supervisor


@pytest.mark.parametrize(("last", "steps"), [(-1, 0), (0, 2), (3, 5), (6, 8), (7, 0), (50, 0)])
def test_no_step_of_a_requeued_job_has_a_number_of_the_attempt_before(
    controller: Controller, last: int, steps: int
) -> None:
    assert burn_step_ids(last) == steps
    assert controller.calls == ["srun --nodes=1 --ntasks=1 --output=/dev/null true"] * steps


def test_the_first_attempt_avoids_nodes_on_which_the_run_failed(
    policy: RequeuePolicy, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    held = ["node1", "node2", "node3"]
    assert first_nodes(policy, held, [2]) == ["node1", "node2"]
    fail_on(policy.run.path, "node2")
    assert first_nodes(policy, held, [2]) == ["node1", "node3"]
    assert controller.calls == []
    controller.answers |= {SHOW: RUNNING, "sinfo": "node1 node2"}
    assert first_nodes(policy, ["node1", "node2"], [2]) == ["node1", "node2"]  # there are no others
    assert capsys.readouterr().out == ""
    controller.answers["sinfo"] = "node1 node2 node3"
    assert first_nodes(policy, ["node1", "node2"], [2]) == []
    assert "this run failed before on node2: the job is requeued without these nodes" in capsys.readouterr().out


def test_the_command_line_of_the_batch_script() -> None:
    options, command = parse(["/run", "--", "srun", "--label", "--", "python", "-m", "train", "--", "x"])
    assert vars(options) == {
        "run": "/run", "max_retries": 5, "node_counts": None, "ntasks_per_node": 1, "signal_seconds": 0,
        "join_seconds": 120, "heartbeat_seconds": 5, "hang_seconds": 0.0, "standby": False, "no_kill": False,
    }  # fmt: skip
    assert command == Command(["srun", "--label"], ["python", "-m", "train", "--", "x"], 1)
    given = ["--max-retries=3", "--node-counts=4,2", "--ntasks-per-node=8", "--signal-seconds=90", "--join-seconds=7"]
    options, command = parse(
        [
            "/run",
            *given,
            "--heartbeat-seconds=9",
            "--hang-seconds=8.5",
            "--standby",
            "--no-kill",
            "--",
            "srun",
            "--",
            "x",
        ]
    )
    assert list(vars(options).values()) == ["/run", 3, [4, 2], 8, 90, 7, 9, 8.5, True, True]
    assert command.ranks_per_node == 8


def test_each_process_gets_its_rank_and_whom_it_follows(policy: RequeuePolicy) -> None:
    members = [_member(3, 1), _member(1, 0), _member(3, 0), _member(1, 1)]
    supervisor = _supervisor(policy, *members, ranks=2)
    supervisor.starts = 4
    supervisor.predecessors = [_member(1, launch=9), _member(2, launch=9), _member(3, launch=9)]
    supervisor.assign(members, ["node1", "node3"])
    for member, rank in zip(members, (3, 0, 2, 1), strict=True):
        (assignment,) = member.writer.assignments()  # type: ignore[attr-defined]
        pid = 109 if member.node == "node1" else 309
        assert assignment == Assignment(
            rank=rank, ranks_per_node=2, start=4, nodes=["node1", "node3"], predecessors=[Process(pid=pid, began=1)]
        )


def test_a_node_whose_processes_do_not_all_answer_is_bad(policy: RequeuePolicy) -> None:
    supervisor = _supervisor(policy, ranks=2)
    members = [_member(1, 0), _member(2, 0), _member(1, 1)]
    failure = supervisor.absent(members, ["node1", "node2", "node3"])
    assert failure == Failure(EndReason.BAD_NODE, "node2", 77)


def test_members_of_a_step_are_those_on_its_nodes(policy: RequeuePolicy) -> None:
    members = [_member(1), _member(2), _member(3), _member(1, launch=2)]
    supervisor = _supervisor(policy, *members)
    step = Step(1, ["node1", "node3"], standby=False)
    assert supervisor.members(step) == [members[0], members[2]]
    assert supervisor.idle(step) == [members[1]]
    members[1].lost = True
    assert supervisor.lost() == {"node2"}


@pytest.mark.parametrize(
    ("line", "states", "reduced"),
    [
        (RUNNING.replace("node[1-3]", "node[1,3]"), UP, True),
        (RUNNING.replace("node[1-3]", "node[2-3]"), UP, True),  # also the node of the batch script
        (RUNNING, UP, False),
        (RUNNING.replace("node[1-3]", "node[1-2]"), UP, False),  # the run does not train on node3
        (RUNNING.replace("node[1-3]", "node[1,3]").replace("Restarts=0", "Restarts=1"), UP, False),
        (RUNNING, "NodeName=node1 State=MIXED\nNodeName=node2 State=DOWN* Reason=Not responding [slurm@now]", True),
        (RUNNING, "NodeName=node1 State=MIXED*\nNodeName=node2 State=MIXED", False),  # slurmd may be restarting
        (RUNNING, "NodeName=node1 State=MIXED+DRAIN\nNodeName=node2 State=MIXED", False),
        ("JobState=PENDING Restarts=0 NodeList=(null)", UP, False),
        ("", "", False),
    ],
)
def test_slurm_is_asked_every_15_seconds_whether_it_has_taken_a_node(
    policy: RequeuePolicy, controller: Controller, monkeypatch: pytest.MonkeyPatch, line: str, states: str,
    reduced: bool,
) -> None:  # fmt: skip
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    controller.answers |= {SHOW: line, SHOW_NODES: states}
    supervisor = _supervisor(policy)

    async def ask(seconds: float) -> bool:
        now[0] += seconds
        return await supervisor.is_reduced(["node1", "node2"])

    async def run() -> list[bool]:
        return [await ask(seconds) for seconds in (14.9, 0.1, 14.9, 0.1)]

    assert asyncio.run(run()) == [False, reduced, False, reduced]
    assert controller.calls.count(SHOW) == 2


def test_ranks_that_do_not_leave_a_taken_node_are_told_again_after_a_minute(
    policy: RequeuePolicy, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    controller.answers |= {SHOW: RUNNING.replace("node[1-3]", "node[1,3]"), SHOW_NODES: UP}
    supervisor = _supervisor(policy, _member(1), _member(2))
    step = Step(1, [], standby=False)
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(Step, "signal", staticmethod(lambda *words: told.append((now[0] - 1000, *words))))

    async def launch(nodes: list[str], standby: bool) -> Step:
        return step

    async def wait(seconds: float = 1.0) -> None:
        now[0] += 5
        if now[0] > 1150:
            step.status = 1

    monkeypatch.setattr(supervisor, "launch", launch)
    monkeypatch.setattr(supervisor, "wait", wait)
    assert asyncio.run(supervisor.attempt(["node1", "node2"])) is not None
    assert told == [(seconds, "7", 4, "TERM") for seconds in (15, 80, 145)]


@pytest.mark.parametrize(
    ("nodes", "status", "gone", "taken"),
    [
        ("12", None, "", True),
        ("12", 1, "", False),  # its srun has ended
        ("12", None, "2", False),
        ("13", None, "", False),  # node3 has no standby process
    ],
)
def test_a_standby_step_is_taken_if_it_waits_on_all_nodes(
    policy: RequeuePolicy, nodes: str, status: int | None, gone: str, taken: bool
) -> None:
    supervisor = _supervisor(policy, *(_member(node, launch=2, gone=str(node) in gone) for node in (1, 2)))
    step = supervisor.standby = Step(2, ["node1", "node2"], standby=True, status=status)

    async def run() -> Step | None:
        return await supervisor.take_standby([f"node{node}" for node in nodes])

    assert asyncio.run(run()) is (step if taken else None)
    assert supervisor.standby is None
    assert step.killed is not taken


@pytest.mark.parametrize("standby", [True, False])
def test_a_standby_step_starts_once_on_the_nodes_that_answer(
    policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch, standby: bool
) -> None:
    members = [_member(1), _member(2), _member(3, lost=True, gone=True)]
    supervisor = _supervisor(policy, *members, standby=standby)
    supervisor.launches = 1
    launched: list[tuple[list[str], bool]] = []

    async def launch(nodes: list[str], standby: bool) -> Step:
        launched.append((nodes, standby))
        return Step(2, nodes, standby)

    monkeypatch.setattr(supervisor, "launch", launch)

    async def run() -> None:
        for _ in range(2):
            await supervisor.start_standby(Step(1, ["node1"], standby=False))

    asyncio.run(run())
    assert launched == ([(["node1", "node2"], True)] if standby else [])
    assert members[0].writer.assignments() == []  # type: ignore[attr-defined]
    assert members[1].writer.assignments() == ([Assignment()] if standby else [])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ends", "lines", "status", "failure", "seconds"),
    [
        ([(0, None), (0, None)], [], None, None, 0),
        ([(1, 0), (0, None)], [], None, None, 0),  # one has finished
        ([(1, 2), (2, 76)], [], None, Failure(EndReason.USER_ERROR, "", 2), 0),
        ([(1, 76), (0, None)], [], None, Failure(EndReason.LOST_PEERS, "", 76), 2.125),
        ([(1, 79), (0, None)], [], None, Failure(EndReason.HUNG, "", 79), 0.625),
        ([(1, 77), (0, None)], [], None, Failure(EndReason.BAD_NODE, "node1", 77), 2.125),
        ([(1, 77), (2, 76)], [], None, Failure(EndReason.BAD_NODE, "node1", 77), 0),
        ([(1, None), (0, None)], [], None, Failure(EndReason.KILLED, "node1", KILLED_STATUS), 2.125),
        ([(1, None), (0, None)], [], 1, Failure(EndReason.KILLED, "node1", KILLED_STATUS), 0),  # srun has ended
    ],
)
def test_ranks_have_a_moment_to_say_why_they_end(
    policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch, ends: list[tuple[float, int | None]], lines: list[str],
    status: int | None, failure: Failure | None, seconds: float,
) -> None:  # fmt: skip
    """A pair is the time of a rank's end, 0 if it works, and the status that it announced."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    members = [
        _member(number + 1, ended_at=ended, status=announced, gone=bool(ended))
        for number, (ended, announced) in enumerate(ends)
    ]
    supervisor = _supervisor(policy, *members)

    async def wait(seconds: float) -> None:
        now[0] += 0.125  # exact in binary

    monkeypatch.setattr(supervisor, "wait", wait)
    step = Step(1, ["node1", "node2"], False, lines=lines, status=status)
    assert asyncio.run(supervisor.failure(step)) == failure
    assert now[0] - 1000 == seconds


def test_ranks_that_lost_each_other_wait_for_a_heartbeat(
    policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    members = [_member(1, ended_at=1, status=76), _member(2)]
    supervisor = _supervisor(policy, *members)
    supervisor.settings = Settings((2,), False, True, heartbeat_seconds=9, join_seconds=60, hang_seconds=0)

    async def wait(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1009.5:
            members[1].lost = True

    monkeypatch.setattr(supervisor, "wait", wait)
    step = Step(1, ["node1", "node2"], False)
    assert asyncio.run(supervisor.failure(step)) == Failure(EndReason.NODE_DOWN, "node2")


def test_what_a_discarded_step_leaves_is_gone_before_new_ranks_start(
    policy: RequeuePolicy, controller: Controller
) -> None:
    old = [_member(1, launch=1, gone=True), _member(2, launch=1)]
    new = [_member(1, launch=2), _member(2, launch=2, gone=True)]
    supervisor = _supervisor(policy, *old, *new)
    supervisor.predecessors = old

    async def run() -> None:
        supervisor.discard(Step(2, ["node1", "node2"], False))
        assert supervisor.predecessors == [old[1], *new]
        supervisor.standby = Step(3, [], True)
        await supervisor.leave()

    asyncio.run(run())
    assert controller.calls == ["scancel --signal=KILL 7.4"]
    assert supervisor._tasks == set()


@pytest.mark.parametrize(("is_lost", "seconds"), [(False, 60.0), (True, 3.0)])
def test_srun_of_a_finished_run_gets_a_minute_unless_a_node_is_lost(
    policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch, is_lost: bool, seconds: float
) -> None:
    """It waits for lost nodes, which will not answer."""
    waited: list[tuple[int, float]] = []

    async def end(step: Step, limit: float) -> None:
        waited.append((step.launch, limit))

    monkeypatch.setattr(Step, "end", end)
    supervisor = _supervisor(policy, _member(1), _member(2, lost=is_lost))
    supervisor.standby = Step(2, [], True)
    asyncio.run(supervisor.dismiss(Step(1, ["node1", "node2"], False)))
    assert waited == [(1, seconds), (2, seconds)]


def test_a_member_waits_for_a_change_or_a_second(policy: RequeuePolicy) -> None:
    async def run() -> tuple[float, float]:
        supervisor = _supervisor(policy)
        supervisor.changed.set()
        began = time.monotonic()
        await supervisor.wait(60)
        first = time.monotonic() - began
        await supervisor.wait(0.05)
        return first, time.monotonic() - began - first

    first, second = asyncio.run(run())
    assert first < 30
    assert second >= 0.05


def test_every_rank_can_have_its_connection() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard) - 1, hard))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Supervisor]:
    """The supervisors that ``main`` starts; each of them ends with status 0."""
    found: list[Supervisor] = []

    async def run(self: Supervisor, nodes: list[str]) -> int:
        self.held = [*self.held, "then", *nodes]
        found.append(self)
        return 0

    monkeypatch.setattr(Supervisor, "run", run)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-3]")
    return found


def test_the_batch_script_starts_as_its_arguments_say(
    tmp_path: Path, controller: Controller, started: list[Supervisor]
) -> None:
    run = tmp_path / "runs/demo"
    options = ["--max-retries=3", "--node-counts=2,1", "--signal-seconds=90", "--join-seconds=7", "--no-kill"]
    assert (
        module.main(
            [str(run), *options, "--heartbeat-seconds=9", "--hang-seconds=5", "--standby", "--", "srun", "--", "x"]
        )
        == 0
    )
    (supervisor,) = started
    assert supervisor.settings == Settings((2, 1), True, True, 9, 7, 5.0)
    assert supervisor.held == ["node1", "node2", "node3", "then", "node1", "node2"]
    policy = supervisor.policy
    assert policy.attempt == Attempt(job="7", restart=2)
    assert (policy.max_retries, policy.signal_seconds, policy.run.path) == (3, 90, run)
    assert supervisor.first_step_id == 0
    assert set(controller.called("squeue")) == {"squeue -h --me -n review-7 -t PENDING -o %i"}


def test_without_node_counts_a_run_takes_all_nodes(
    tmp_path: Path, controller: Controller, started: list[Supervisor]
) -> None:
    os.environ.pop("SLURM_RESTART_COUNT")
    assert module.main([str(tmp_path), "--", "srun", "--", "x"]) == 0
    assert started[0].settings == Settings((3,), False, False, 5, 120, 0.0)
    assert started[0].policy.attempt.restart == 0
    assert started[0].held[-3:] == ["node1", "node2", "node3"]


def test_a_job_on_bad_nodes_is_requeued_or_must_use_them(
    tmp_path: Path, controller: Controller, started: list[Supervisor]
) -> None:
    fail_on(tmp_path, "node2")
    controller.answers |= {SHOW: RUNNING, "sinfo": "node1 node3 node4"}
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert module.main([str(tmp_path), "--node-counts=3", "--", "srun", "--", "x"]) == 0
        assert started == []
        controller.answers["scontrol requeue"] = (1, "", "Access denied")
        assert module.main([str(tmp_path), "--node-counts=3", "--", "srun", "--", "x"]) == 0
        assert started[0].held[-3:] == ["node1", "node2", "node3"]
    finally:
        signal.signal(signal.SIGTERM, before)
