"""TCP connections between the batch host and the other nodes, which end when the other node is lost."""

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress

_LOST = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)


def keep_alive(connection: socket.socket, seconds: int) -> None:
    """Let the kernel end a connection whose other machine has been silent for ``seconds`` (0: never)."""
    if seconds <= 0:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(seconds - 1, 1))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)


def own_address(nodes: Sequence[str]) -> str:
    """Return this machine's address in the network to ``nodes``; the loopback address for a job on this node alone."""
    me = socket.gethostname().partition(".")[0]
    for node in nodes:
        if node.partition(".")[0] == me:
            continue
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((node, 9))  # looks up the route and sends nothing
            return str(probe.getsockname()[0])
    return "127.0.0.1" if len(nodes) == 1 else socket.gethostbyname(socket.gethostname())


def is_lost(error: BaseException) -> bool:
    """Return whether a connection ended because the other node does not answer, not because its process has ended."""
    return isinstance(error, OSError) and error.errno in _LOST
