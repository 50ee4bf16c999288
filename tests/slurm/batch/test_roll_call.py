import asyncio
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from slurm.batch import member as member_module
from slurm.batch import roll_call as roll_call_module
from slurm.batch.connections import own_address
from slurm.batch.member import Membership, end_predecessors, start_ticks
from slurm.batch.node_choice import choose_nodes
from slurm.batch.protocol import (
    VARIABLE,
    Assignment,
    Challenge,
    Hello,
    Invitation,
    Process,
    Report,
    line,
    new_token,
    proof,
)
from slurm.batch.roll_call import RollCall


def _serve(visit: Callable[[RollCall], None]) -> RollCall:
    """Run a roll call on this machine while ``visit`` runs in another thread."""

    async def run() -> RollCall:
        roll_call = RollCall(5, lambda: None)
        async with roll_call.listening("127.0.0.1"):
            await asyncio.to_thread(visit, roll_call)
            await asyncio.sleep(0.1)
        return roll_call

    return asyncio.run(run())


def _invitation(roll_call: RollCall, token: str = "") -> Invitation:
    return Invitation(
        host=roll_call.host,
        port=roll_call.port,
        token=token or roll_call.token,
        launch=1,
        standby=False,
        heartbeat_seconds=5,
    )


@pytest.fixture(autouse=True)
def _step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setenv("SLURMD_NODENAME", "node3")


def test_a_process_that_ends_is_known_at_once() -> None:
    seen = []

    def visit(roll_call: RollCall) -> None:
        membership = Membership(_invitation(roll_call))
        time.sleep(0.1)
        seen.append([(m.node, m.gone) for m in roll_call.members])
        membership._connection.close()
        membership._lines.close()

    roll_call = _serve(visit)
    assert seen == [[("node3", False)]]
    assert [(m.gone, m.lost, m.status) for m in roll_call.members] == [(True, False, None)]


def test_the_end_of_the_job_leaves_no_traceback_of_a_process_that_has_just_called() -> None:
    faults: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        roll_call = RollCall(5, lambda: None)
        async with roll_call.listening("127.0.0.1"):
            with member_module.connect(roll_call.host, roll_call.port):
                while not (serving := [task for task in asyncio.all_tasks() if "_serve" in str(task.get_coro())]):
                    await asyncio.sleep(0)
                serving[0].cancel()
                await asyncio.sleep(0.1)

    asyncio.run(run())
    assert faults == []


def test_nobody_can_call_after_the_end_of_the_job() -> None:
    seen: list[tuple[str, int]] = []

    async def run() -> None:
        roll_call = RollCall(5, lambda: None)
        async with roll_call.listening("127.0.0.1"):
            seen.append((roll_call.host, roll_call.port))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(roll_call.host, roll_call.port)

    asyncio.run(run())
    assert seen[0][0] == "127.0.0.1"
    assert seen[0][1] > 0


def test_every_change_of_a_member_is_announced() -> None:
    """The supervisor would otherwise see it only when it looks again, a second later."""
    seen: list[list[tuple[bool, int | None, bool]]] = []

    async def run() -> RollCall:
        roll_call = RollCall(5, lambda: seen.append([(m.trains, m.status, m.gone) for m in roll_call.members]))
        async with roll_call.listening("127.0.0.1"):
            await asyncio.to_thread(visit, roll_call)
            while not roll_call.members[0].gone:
                await asyncio.sleep(0.01)
        return roll_call

    def visit(roll_call: RollCall) -> None:
        membership = Membership(_invitation(roll_call))
        for count, report in enumerate((Report(what="trains"), Report(what="leaves", status=77)), start=1):
            while len(seen) < count:
                time.sleep(0.01)
            membership._report(report)
        while len(seen) < 3:
            time.sleep(0.01)
        time.sleep(0.05)
        membership._connection.shutdown(socket.SHUT_RDWR)
        membership._lines.close()
        membership._connection.close()

    began = time.monotonic()
    roll_call = asyncio.run(run())
    assert seen == [[(False, None, False)], [(True, None, False)], [(True, 77, False)], [(True, 77, True)]]
    (member,) = roll_call.members
    assert began < member.ended_at <= time.monotonic() - 0.05  # its word, not the end of its connection
    assert not member.lost


def test_a_sign_of_life_is_noted_and_changes_nothing_else() -> None:
    """The supervisor looks again at every change: signs of thousands of ranks must not wake it."""
    heard: list[float] = []
    changes: list[None] = []

    async def run() -> None:
        roll_call = RollCall(5, lambda: changes.append(None))
        async with roll_call.listening("127.0.0.1"):
            await asyncio.to_thread(visit, roll_call)

    def visit(roll_call: RollCall) -> None:
        membership = Membership(_invitation(roll_call))
        while not roll_call.members:
            time.sleep(0.01)
        (member,) = roll_call.members
        for what in ("alive", "alive", "trains"):
            heard.append(member.heard_at)
            said = time.monotonic()
            membership._report(Report(what=what))
            end = said + 10
            while member.heard_at < said and time.monotonic() < end:
                time.sleep(0.01)
            if what == "alive":
                assert (len(changes), member.trains, member.ended_at) == (1, False, 0)
        heard.append(member.heard_at)
        while len(changes) < 2:
            time.sleep(0.01)
        membership._lines.close()
        membership._connection.close()

    asyncio.run(run())
    assert heard == sorted(set(heard))


def test_a_process_that_ends_without_a_word_has_the_time_of_its_end() -> None:
    def visit(roll_call: RollCall) -> None:
        membership = Membership(_invitation(roll_call))
        membership._lines.close()
        membership._connection.close()

    began = time.monotonic()
    (member,) = _serve(visit).members
    assert began < member.ended_at < time.monotonic()
    assert (member.trains, member.status) == (False, None)
    member.send(Assignment())  # to nobody: no error


@pytest.mark.parametrize(("number", "lost"), [(errno.ETIMEDOUT, True), (errno.ECONNRESET, False)])
def test_a_node_is_lost_if_its_kernel_does_not_answer(number: int, lost: bool) -> None:
    def visit(roll_call: RollCall) -> None:
        membership = Membership(_invitation(roll_call))
        while not roll_call.members:
            time.sleep(0.01)
        transport = roll_call.members[0].writer.transport
        error = OSError(number, os.strerror(number))
        transport._loop.call_soon_threadsafe(transport.get_protocol().connection_lost, error)  # type: ignore[attr-defined]
        while not roll_call.members[0].gone:
            time.sleep(0.01)
        membership._lines.close()
        membership._connection.close()

    (member,) = _serve(visit).members
    assert member.lost is lost


def test_the_supervisor_notices_a_lost_node_after_the_heartbeat() -> None:
    found: list[int] = []

    def visit(roll_call: RollCall) -> None:
        membership = Membership(_invitation(roll_call))
        while not roll_call.members:
            time.sleep(0.01)
        connection = roll_call.members[0].writer.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        membership._lines.close()
        membership._connection.close()

    _serve(visit)
    assert found == [5000]  # ms


@pytest.mark.parametrize(("second", "members"), [("node3", 1), ("node4", 2)])
def test_a_process_counts_once(second: str, members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of processes repeat between nodes."""

    def visit(roll_call: RollCall) -> None:
        first = Membership(_invitation(roll_call))
        monkeypatch.setenv("SLURMD_NODENAME", second)
        other = Membership(_invitation(roll_call))
        time.sleep(0.1)
        for membership in (first, other):
            membership._lines.close()
            membership._connection.close()

    found = _serve(visit).members
    assert [member.node for member in found] == ["node3", second][:members]


def test_a_silent_connection_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert roll_call_module.GREETING_SECONDS == 20
    monkeypatch.setattr(roll_call_module, "GREETING_SECONDS", 0.05)

    def visit(roll_call: RollCall) -> None:
        with member_module.connect(roll_call.host, roll_call.port) as connection:
            connection.settimeout(30)
            assert connection.recv(1000).startswith(b'{"nonce":')
            assert connection.recv(1000) == b""

    assert _serve(visit).members == []
    assert "a connection to the roll call was refused (TimeoutError)" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "members"), [(4096, 1), (4097, 0)])
def test_a_first_line_has_at_most_4096_bytes(size: int, members: int) -> None:
    def visit(roll_call: RollCall) -> None:
        with member_module.connect(roll_call.host, roll_call.port) as connection, connection.makefile("rb") as lines:
            challenge, nonce = Challenge.model_validate_json(lines.readline()), "ef" * 32
            hello = Hello(
                node="node3", launch=1, step=0, local_rank=0, process=Process(pid=9, began=1), nonce=nonce,
                proof=proof(roll_call.token, "process", challenge.nonce, nonce),
            )  # fmt: skip
            connection.sendall(line(hello).strip().ljust(size - 1) + b"\n")
            lines.readline()

    assert len(_serve(visit).members) == members


def test_who_does_not_know_the_token_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def visit(roll_call: RollCall) -> None:
        with pytest.raises(ConnectionError):
            Membership(_invitation(roll_call, new_token()))

    assert _serve(visit).members == []
    assert "a connection to the roll call was refused" in capsys.readouterr().out


def test_a_program_that_does_not_know_the_token_is_no_supervisor() -> None:
    def visit(roll_call: RollCall) -> None:
        invitation = _invitation(roll_call)
        roll_call.token = new_token()  # of another job, whose supervisor took the port
        with pytest.raises(ConnectionError):
            Membership(invitation)

    assert _serve(visit).members == []


@pytest.mark.parametrize(
    "text", [b"\n", b"{}\n", b"GET / HTTP/1.1\r\n", b"[" * 100_000 + b"\n", b"x" * (2 << 20)], ids=range(5)
)
def test_any_other_text_is_refused(text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    def visit(roll_call: RollCall) -> None:
        connection = member_module.connect(roll_call.host, roll_call.port)
        with connection:
            connection.sendall(text)
            time.sleep(0.1)

    assert _serve(visit).members == []
    assert "a connection to the roll call was refused" in capsys.readouterr().out


def test_a_process_that_cannot_reach_the_supervisor_requeues_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch host was lost after it had started the step."""
    invitation = Invitation(host="127.0.0.1", port=9, token="a" * 64, launch=1, standby=True, heartbeat_seconds=5)
    monkeypatch.setenv(VARIABLE, invitation.model_dump_json())
    monkeypatch.setattr(member_module, "CONNECT_SECONDS", 0.0)
    asked: list[float] = []
    monkeypatch.setattr(member_module, "requeue_without_supervisor", lambda seconds: asked.append(seconds))
    with pytest.raises(ConnectionError, match="cannot be reached"):
        member_module.join()
    assert asked == [900.0]


def test_old_processes_are_killed_before_new_ranks_start() -> None:
    victim = subprocess.Popen(["sleep", "60"])
    began = start_ticks(victim.pid)
    assert began is not None
    end_predecessors([Process(pid=victim.pid, began=began + 1)])  # another process with this number
    assert victim.poll() is None
    end_predecessors([Process(pid=victim.pid, began=began)])
    assert victim.wait(5) == -signal.SIGKILL


def test_the_preparation_of_a_standby_gives_way_to_training_but_the_process_does_not_stay_slow() -> None:
    priorities: list[int] = []
    before = os.getpriority(os.PRIO_PROCESS, os.getpid())

    def note() -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=member_module._at_priority, args=(True, note))
    thread.start()
    thread.join()
    assert priorities == [19]
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == before


@pytest.mark.parametrize("lowest", [True, False])
def test_only_a_standby_prepares_at_the_lowest_priority(lowest: bool) -> None:
    found: list[int] = []
    before = os.getpriority(os.PRIO_PROCESS, os.getpid())
    thread = threading.Thread(
        target=member_module._at_priority,
        args=(lowest, lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))),
    )
    thread.start()
    thread.join()
    assert found == [19 if lowest else before]


@pytest.mark.parametrize(
    ("held", "avoided", "counts", "chosen"),
    [
        ("abcd", "", [2], "ab"),
        ("abcd", "a", [2], "bc"),
        ("abcd", "ab", [4, 3, 2], "cd"),
        ("abcd", "a", [4, 2, 1], "bc"),
        ("ab", "a", [2], ""),
        ("ab", "ab", [2, 1], ""),
    ],
)
def test_nodes_are_chosen_in_slurm_s_order(held: str, avoided: str, counts: list[int], chosen: str) -> None:
    assert choose_nodes(list(held), avoided, counts) == list(chosen)


def test_a_job_on_one_node_listens_to_itself_only() -> None:
    assert own_address([os.uname().nodename]) == "127.0.0.1"
