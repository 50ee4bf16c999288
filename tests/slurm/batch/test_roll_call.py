import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from slurm.batch import member as member_module
from slurm.batch.connections import own_address
from slurm.batch.member import Membership, end_predecessors, start_ticks
from slurm.batch.node_choice import choose_nodes
from slurm.batch.protocol import Invitation, Process, new_token
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
