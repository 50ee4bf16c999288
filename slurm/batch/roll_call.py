"""Roll call: the supervisor's server, at which every process of every job step answers.

The connection of a process is its sign of life. Its end is the end of the process, at once. The kernels of both nodes
also exchange keepalive packets: a node without power or network is lost after ``launch.heartbeat_seconds``, while a
process that is stopped, or busy in C, is not. A rank says every ALIVE_SECONDS that it runs: one that is silent for
longer than a step may take is hung. Other hangs are the watchdog's business.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from motionmae.json_text import JsonModel, parse_json
from slurm.batch import protocol
from slurm.batch.batch_log import log
from slurm.batch.connections import is_lost, keep_alive
from slurm.batch.protocol import LINE_LIMIT, Assignment, Hello, Report

GREETING_SECONDS = 20.0
"""Time in which a new connection must prove that it belongs to the job."""


@dataclass
class Member:
    """A process that has answered the roll call."""

    hello: Hello
    writer: asyncio.StreamWriter
    trains: bool = False  # its attempt has taken a step
    status: int | None = None  # exit status that the process has announced
    gone: bool = False  # the process has ended, or its node is lost
    lost: bool = False  # its node does not answer
    heard_at: float = field(default_factory=time.monotonic)  # monotonic time of its last line
    ended_at: float = 0.0  # monotonic time at which it announced its end or was gone; 0 before

    @property
    def node(self) -> str:
        return self.hello.node

    def send(self, message: JsonModel) -> None:
        if not self.gone:
            self.writer.write(protocol.line(message))


class RollCall:
    """The server. ``changed`` is called after every change of a member."""

    def __init__(self, heartbeat_seconds: int, changed: Callable[[], None]) -> None:
        self.token, self._heartbeat, self._changed = protocol.new_token(), heartbeat_seconds, changed
        self.members: list[Member] = []
        self.host, self.port = "", 0
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, host: str) -> AsyncIterator[None]:
        """Listen on one address of this machine, at a port that the system chooses; at the end, close all connections.

        From Python 3.12 on, the end of asyncio's own ``async with server`` would wait for every process to leave.
        """
        server = await asyncio.start_server(self._accept, host, 0, limit=LINE_LIMIT, backlog=4096)
        self.host, self.port = server.sockets[0].getsockname()[:2]
        try:
            yield
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            if self._connections:
                await asyncio.wait(self._connections)

    def of_launch(self, launch: int) -> list[Member]:
        """Return the members of a step that this supervisor has started."""
        return [member for member in self.members if member.hello.launch == launch]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task. Python 3.11 prints a traceback for a cancelled task that it made itself."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = None
        try:
            keep_alive(writer.get_extra_info("socket"), self._heartbeat)
            hello = await asyncio.wait_for(self._greet(reader, writer), GREETING_SECONDS)
            if any(other.hello.process == hello.process and other.node == hello.node for other in self.members):
                return
            member = Member(hello, writer)
            self.members.append(member)
            self._changed()
            while text := await reader.readline():
                report = parse_json(text, Report)
                member.heard_at = time.monotonic()
                if report.what == "alive":
                    continue
                member.trains |= report.what == "trains"
                if report.what == "leaves":
                    member.status, member.ended_at = report.status, time.monotonic()
                self._changed()
        except (OSError, EOFError, ValueError) as error:
            if member is None:
                log(f"a connection to the roll call was refused ({type(error).__name__})")
            else:
                member.lost = is_lost(error)
        finally:
            if member is not None:
                member.gone, member.ended_at = True, member.ended_at or time.monotonic()
                self._changed()
            with suppress(OSError):
                writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello:
        """Return the hello of a process that knows the token, or raise PermissionError."""
        nonce = secrets.token_hex(32)
        writer.write(protocol.line(protocol.Challenge(nonce=nonce)))
        text = await reader.readline()
        if not text:
            raise EOFError
        hello = parse_json(text, Hello, limit=4096)
        if not protocol.is_proof(hello.proof, self.token, "process", nonce, hello.nonce):
            raise PermissionError("wrong token")
        proof = protocol.proof(self.token, "supervisor", nonce, hello.nonce)
        writer.write(protocol.line(protocol.Welcome(proof=proof)))
        return hello


def end(members: Sequence[Member]) -> None:
    """Tell idle processes to end."""
    for member in members:
        member.send(Assignment())
