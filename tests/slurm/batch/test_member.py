"""A process of a step: its place, its assignment, its signs of life, and its end, without a supervisor's decisions."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind
from motionmae.runs.history import START_VARIABLE
from slurm.batch import member
from slurm.batch.protocol import (
    VARIABLE,
    Assignment,
    Challenge,
    Hello,
    Invitation,
    Process,
    Report,
    Welcome,
    line,
    proof,
)
from tests.slurm.fakes.controller import NO_ANSWER, RUNNING, Controller

TOKEN, NONCE = "ab" * 32, "cd" * 32
SHOW = "scontrol show job -o 7"


class Exit(BaseException):
    """The end of the process, which tests must survive."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise Exit(status)

    monkeypatch.setattr(member.os, "_exit", leave)


class Supervisor:
    """The other side of the connection, by hand."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.hello: Hello | None = None
        self.connection: socket.socket | None = None

    def invitation(self, standby: bool = False, heartbeat_seconds: int = 9) -> Invitation:
        port = self.server.getsockname()[1]
        return Invitation(
            host="127.0.0.1", port=port, token=TOKEN, launch=3, standby=standby, heartbeat_seconds=heartbeat_seconds
        )

    def greet(self) -> None:
        self.connection, _ = self.server.accept()
        self.lines = self.connection.makefile("rb")
        self.connection.sendall(line(Challenge(nonce=NONCE)))
        self.hello = Hello.model_validate_json(self.lines.readline())
        self.connection.sendall(line(Welcome(proof=proof(TOKEN, "supervisor", NONCE, self.hello.nonce))))

    def member(self, **values: int) -> member.Membership:
        thread = threading.Thread(target=self.greet)
        thread.start()
        found = member.Membership(self.invitation(**values))
        thread.join()
        return found

    def says(self, *messages: Assignment) -> None:
        assert self.connection is not None
        self.connection.sendall(b"".join(map(line, messages)))

    def hears(self) -> list[Report]:
        """Everything until the end of the connection."""
        return [Report.model_validate_json(text) for text in self.lines]


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("SLURM_LOCALID", "2")
    monkeypatch.setenv("SLURM_STEP_ID", "5")
    monkeypatch.setenv("SLURMD_NODENAME", "node3")
    found = Supervisor()
    yield found
    found.server.close()
    if found.connection is not None:
        found.lines.close()
        found.connection.close()


def test_the_first_line_says_who_calls_and_proves_it(supervisor: Supervisor) -> None:
    before = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    one = supervisor.member()
    hello = supervisor.hello
    assert hello is not None
    assert (hello.node, hello.launch, hello.step, hello.local_rank) == ("node3", 3, 5, 2)
    assert hello.process == Process(pid=os.getpid(), began=before)
    assert hello.proof == proof(TOKEN, "process", NONCE, hello.nonce)
    assert hello.nonce != NONCE
    assert one.standby is False


def test_without_slurm_s_variables_the_host_name_counts(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURMD_NODENAME")
    monkeypatch.delenv("SLURM_STEP_ID")
    supervisor.member()
    assert supervisor.hello is not None
    assert (supervisor.hello.node, supervisor.hello.step) == (socket.gethostname(), 0)


def test_both_ends_notice_a_lost_node_after_the_heartbeat(supervisor: Supervisor) -> None:
    one = supervisor.member(heartbeat_seconds=9)
    assert one._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000  # ms


def test_a_program_that_cannot_prove_the_token_is_no_supervisor(supervisor: Supervisor) -> None:
    def greet() -> None:
        connection, _ = supervisor.server.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(line(Challenge(nonce=NONCE)))
            hello = Hello.model_validate_json(lines.readline())
            connection.sendall(line(Welcome(proof=hello.proof)))  # its own proof back

    thread = threading.Thread(target=greet)
    thread.start()
    with pytest.raises(PermissionError, match="another program answers"):
        member.Membership(supervisor.invitation())
    thread.join()


def test_the_assignment_comes_while_the_process_prepares(supervisor: Supervisor) -> None:
    one = supervisor.member()
    order = Assignment(rank=3, start=2, ranks_per_node=2, nodes=["node1", "node3"])
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def prepare() -> None:
        begun.set()
        go.wait(30)
        done.append("prepared")

    def assign() -> None:
        begun.wait(30)
        supervisor.says(order)
        go.set()

    thread = threading.Thread(target=assign)
    thread.start()
    assert one.wait(prepare) == order
    assert done == ["prepared"]  # nobody trains with half an import
    thread.join()


def test_a_preparation_that_fails_does_not_end_the_process(supervisor: Supervisor) -> None:
    one = supervisor.member()
    order = Assignment(rank=0, nodes=["node3"])
    supervisor.says(order)
    assert one.wait(lambda: 1 / 0) == order


def test_the_processes_of_the_attempt_before_are_gone_before_training(supervisor: Supervisor) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    one = supervisor.member()
    began = member.start_ticks(victim.pid)
    assert began is not None
    supervisor.says(Assignment(rank=0, nodes=["node3"], predecessors=[Process(pid=victim.pid, began=began)]))
    one.wait(lambda: None)
    assert victim.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("standby", "message", "status"),
    [
        (False, Assignment(), 0),  # nobody needs it
        (True, Assignment(), 0),
        (False, None, EndReason.LOST_PEERS.exit_code),  # the supervisor has ended
        (True, None, 0),
    ],
)
def test_a_process_without_a_place_ends(
    supervisor: Supervisor, ends: None, standby: bool, message: Assignment | None, status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    one = supervisor.member(standby=standby)
    if message is not None:
        supervisor.says(message)
    else:
        supervisor.connection.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    with pytest.raises(Exit) as caught:
        one._receive()
    assert caught.value.args == (status,)
    assert ("error: the supervisor of this job has ended" in capsys.readouterr().err) is (message is None)


STANDBY = """
import os, signal, sys
from slurm.batch import member
from slurm.batch.member import join
membership = join()
assert {variable!r} not in os.environ  # children must not join
def prepare():
    print("name", open("/proc/self/comm").read().strip(), flush=True)
    print("slow", open(f"/proc/self/task/{{__import__('threading').get_native_id()}}/comm").read().strip(), flush=True)
    print("nice", os.getpriority(os.PRIO_PROCESS, __import__("threading").get_native_id()), flush=True)
membership.wait(prepare)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_standby_process_has_a_name_a_low_priority_and_a_quiet_end(
    supervisor: Supervisor, number: signal.Signals
) -> None:
    invitation = supervisor.invitation(standby=True)
    process = subprocess.Popen(
        [sys.executable, "-c", STANDBY.format(variable=VARIABLE)],
        env={**os.environ, VARIABLE: invitation.model_dump_json(), "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    supervisor.greet()
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(3)]
    assert shown == ["name standby\n", "slow low priority\n", "nice 19\n"]
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")


def test_a_process_that_no_supervisor_started_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert member.join() is None


def test_only_the_first_step_is_reported_and_the_end_with_its_status(supervisor: Supervisor) -> None:
    one = supervisor.member()
    for kind in (Kind.START, Kind.READY, Kind.FIRST_STEP, Kind.CHECKPOINT):
        one.event({"kind": kind})
    one.leave(-9)  # an exit status has eight bits
    assert supervisor.hears() == [Report(what="trains"), Report(what="leaves", status=247)]
    one.leave(1)  # nobody listens: no error


def test_an_end_of_the_connection_wakes_the_watching_thread(supervisor: Supervisor) -> None:
    one = supervisor.member()
    watching = threading.Thread(target=one._watch, daemon=True)
    watching.start()
    one.leave(0)
    watching.join(30)
    assert not watching.is_alive()


@pytest.mark.parametrize("number", ["ETIMEDOUT", "ECONNRESET"])
def test_only_a_lost_batch_host_leads_to_a_requeue(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, ends: None, number: str
) -> None:
    import errno

    one = supervisor.member()
    asked: list[str] = []
    monkeypatch.setattr(member, "requeue_without_supervisor", lambda: asked.append("requeue"))

    class Broken:
        def read(self) -> bytes:
            raise OSError(getattr(errno, number), "broken")

        def readline(self, limit: int) -> bytes:
            return self.read()

    one._lines.close()
    one._lines = Broken()  # type: ignore[assignment]
    one._watch()
    assert asked == ["requeue"] * (number == "ETIMEDOUT")
    with pytest.raises(Exit, match="76"):
        one._receive()
    assert asked == ["requeue", "requeue"] * (number == "ETIMEDOUT")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch, controller: Controller) -> list[float]:
    """The pauses of a process of job 7, which Slurm has requeued once before."""
    found: list[float] = []
    monkeypatch.setattr(member.time, "sleep", found.append)
    for key, value in {"JOB_ID": "7", "RESTART_COUNT": "1", "LOCALID": "0", "NODEID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    return found


def test_a_node_requeues_the_job_in_its_turn_once_the_batch_host_is_down(
    controller: Controller, sleeps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = RUNNING.replace("Restarts=0", "Restarts=1")
    down = "NodeName=node1 State=DOWN Reason=dead ["
    controller.answers |= {SHOW: [NO_ANSWER, runs, runs, runs.replace("Restarts=1", "Restarts=2")]}
    controller.answers["scontrol show node -o node1"] = ["NodeName=node1 State=ALLOCATED", down]
    member.requeue_without_supervisor()
    assert sleeps == [10.0, 5.0, 5.0, 5.0]  # two nodes have their turns first
    assert controller.called("scontrol requeue") == ["scontrol requeue 7"]
    assert "node node1 of the batch script is down: job 7 is requeued" in capsys.readouterr().err


@pytest.mark.parametrize("line_of_job", ["JobState=PENDING Restarts=1", RUNNING])  # requeued, and requeued long ago
def test_a_node_whose_cable_is_back_requeues_nothing(
    controller: Controller, sleeps: list[float], line_of_job: str
) -> None:
    controller.answers[SHOW] = line_of_job
    member.requeue_without_supervisor()
    assert controller.calls == [SHOW]
    assert sleeps == [10.0]
    controller.answers[SHOW] = RUNNING.replace("Restarts=0", "Restarts=1")
    member.requeue_without_supervisor(0.0)  # it gives up
    assert controller.calls == [SHOW, SHOW]


def test_one_process_of_a_node_requeues_the_job(
    controller: Controller, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_LOCALID", "1")
    member.requeue_without_supervisor()
    assert (controller.calls, sleeps) == ([], [])


PLACE = """
import json, os
from slurm.batch.member import take_place
from slurm.batch.protocol import Assignment
take_place(Assignment(rank=5, start=4, ranks_per_node=2, nodes=["node1", "node4", "node6"]))
print(json.dumps([dict(os.environ), open("/proc/self/comm").read().strip()]))
"""


def test_a_rank_has_slurm_s_variables_of_its_place() -> None:
    done = subprocess.run([sys.executable, "-c", PLACE], capture_output=True, text=True, check=True, env={
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[3]),
    })  # fmt: skip
    variables, name = json.loads(done.stdout)
    expected = {
        "SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6", "SLURM_NODEID": "2",
        "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_NNODES": "3", "SLURM_STEP_NUM_NODES": "3",
        "SLURM_JOB_NODELIST": "node1,node4,node6", "SLURM_STEP_NODELIST": "node1,node4,node6", START_VARIABLE: "4",
    }  # fmt: skip
    assert {key: variables[key] for key in expected} == expected
    assert name == "rank5#4"


def test_a_process_that_cannot_be_killed_makes_the_node_a_bad_one(
    monkeypatch: pytest.MonkeyPatch, ends: None, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(member.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(member.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(member, "start_ticks", lambda pid: 5)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(member.os, "kill", lambda *call: killed.append(call))
    with pytest.raises(Exit, match="77"):
        member.end_predecessors([Process(pid=12345, began=5)])
    assert 30 < now[0] < 30.1
    assert set(killed) == {(12345, signal.SIGKILL)}
    assert "error: process 12345 of an earlier attempt cannot be killed" in capsys.readouterr().err


def test_a_process_that_has_ended_has_no_start() -> None:
    own = member.start_ticks(os.getpid())
    assert own == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    child = subprocess.Popen(["true"])
    end = time.monotonic() + 30
    while " Z " not in Path(f"/proc/{child.pid}/stat").read_text() and time.monotonic() < end:
        time.sleep(0.01)
    assert member.start_ticks(child.pid) is None  # a zombie, whose parent has not yet asked for its status
    child.wait()
    assert member.start_ticks(child.pid) is None


def test_names_of_processes_and_threads_are_shown_by_the_kernel() -> None:
    names: list[str] = []

    def note(rename: Callable[[], None]) -> None:
        with suppress(OSError):
            rename()
        names.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip())

    thread = threading.Thread(target=note, args=(lambda: member.name_thread("watcher 1"),))
    thread.start()
    thread.join()
    assert names == ["watcher 1"]
    with pytest.raises(AssertionError):
        member.name_process("two words")
