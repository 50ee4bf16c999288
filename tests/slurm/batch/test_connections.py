import errno
import socket
from collections.abc import Iterator

import pytest

from slurm.batch import connections, member
from slurm.batch.connections import is_lost, keep_alive, own_address
from slurm.batch.protocol import new_token

OPTIONS = (
    socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT,
)  # fmt: skip


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        yield found


@pytest.mark.parametrize(("seconds", "probes"), [(9, 8), (2, 1), (1, 1)])
def test_a_silent_machine_is_lost_after_the_heartbeat(connection: socket.socket, seconds: int, probes: int) -> None:
    """The kernel waits a second and then probes every second: 1 + ``probes`` seconds in all (tcp(7))."""
    keep_alive(connection, seconds)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    found = [connection.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS]
    assert found == [1, 1, probes, 1000 * seconds]


def test_a_heartbeat_of_0_seconds_is_none(connection: socket.socket) -> None:
    keep_alive(connection, 0)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize("number", ["ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN"])
def test_a_node_that_does_not_answer_is_lost(number: str) -> None:
    assert is_lost(OSError(getattr(errno, number), "lost"))


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "reset"), BrokenPipeError(errno.EPIPE, "pipe"), EOFError()]
)
def test_a_process_that_has_ended_is_not_a_lost_node(error: Exception) -> None:
    assert not is_lost(error)


@pytest.mark.parametrize(
    ("host", "nodes", "asked", "address"),
    [
        ("node1.site", ["node1"], [], "127.0.0.1"),  # nobody else needs to reach it
        ("node1.site", ["node1", "localhost"], ["localhost"], "127.0.0.1"),
        ("node1", ["node1.site", "unknown.invalid", "localhost"], ["unknown.invalid", "localhost"], "127.0.0.1"),
        ("node1", ["node1", "node2.invalid"], ["node2.invalid"], "192.0.2.7"),  # none has a route: the host's own name
        ("node9", ["node1.invalid"], ["node1.invalid"], "127.0.0.1"),
    ],
)
def test_the_address_is_that_of_the_network_to_the_other_nodes(
    monkeypatch: pytest.MonkeyPatch, host: str, nodes: list[str], asked: list[str], address: str
) -> None:
    looked_up: list[str] = []

    class Probe(socket.socket):
        def connect(self, place: tuple[str, int]) -> None:  # type: ignore[override]
            looked_up.append(place[0])
            if place[0].endswith(".invalid"):  # no name server has these (RFC 2606)
                raise socket.gaierror("unknown")
            super().connect(("127.0.0.1", place[1]))

    monkeypatch.setattr(connections.socket, "socket", Probe)
    monkeypatch.setattr(connections.socket, "gethostname", lambda: host)
    monkeypatch.setattr(connections.socket, "gethostbyname", lambda name: "192.0.2.7" if name == host else "0.0.0.0")
    assert own_address(nodes) == address
    assert looked_up == asked


def test_a_supervisor_that_listens_late_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[tuple[object, object]] = []
    here, there = socket.socketpair()
    here.settimeout(5)

    def create(address: tuple[str, int], timeout: float) -> socket.socket:
        tries.append((address, timeout))
        if len(tries) < 3:
            raise ConnectionRefusedError("refused")
        return here

    now = [0.0]
    monkeypatch.setattr(member.socket, "create_connection", create)
    monkeypatch.setattr(member.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(member.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with here, there:
        assert member.connect("10.0.0.1", 99) is here
        assert here.gettimeout() is None  # an assignment may come after days
    assert tries == [(("10.0.0.1", 99), 5)] * 3
    assert now == [1.0]


def test_a_supervisor_that_does_not_listen_is_given_up_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(member.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(member.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"at 127.0.0.1:{port} cannot be reached"):
        member.connect("127.0.0.1", port)
    assert now == [60.5]


def test_two_tokens_differ() -> None:
    one, two = new_token(), new_token()
    assert one != two
    assert len(bytes.fromhex(one)) == 32
