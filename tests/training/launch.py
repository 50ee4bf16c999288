"""Ranks for tests: real processes with a real process group, forked from a process that has imported everything.

The import of torch and DeepSpeed takes seconds; the fork server does it once per test session.
"""

import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

TIMEOUT = 400.0


def _context() -> Any:
    """Start the fork server on the first call. It does not inherit sys.path and gets its own environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.preload"])
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONPATH=str(ROOT))
    ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


class Ranks:
    """``world`` processes that each call ``target(*arguments)`` as one rank."""

    def __init__(self, world: int, target: Callable[..., Any], *arguments: Any) -> None:
        context = _context()
        port = free_port()
        self._receivers: list[Connection] = []
        self.processes = []
        self._logs = tempfile.TemporaryDirectory(prefix="motionmae-ranks-")
        for rank in range(world):
            receiver, sender = context.Pipe(duplex=False)
            job = (rank, world, port, self._log_of(rank), sender, target, arguments)
            process = context.Process(target=_be_rank, args=job, daemon=True)  # ends with pytest
            process.start()
            sender.close()
            self._receivers.append(receiver)
            self.processes.append(process)

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank."""
        os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        """Kill all ranks, like a node that loses power."""
        for process in self.processes:
            process.kill()
            process.join()

    def results(self) -> list[Any]:
        """Return each rank's result, or raise with the first traceback."""
        answers = []
        end = time.monotonic() + TIMEOUT
        try:
            for rank, receiver in enumerate(self._receivers):
                if not receiver.poll(max(end - time.monotonic(), 0)):
                    raise AssertionError(f"rank {rank} does not end:\n{self.output()}")
                try:
                    answers.append(pickle.loads(receiver.recv_bytes()))
                except EOFError:
                    raise AssertionError(f"rank {rank} died:\n{self.output()}") from None
        finally:
            failed = [text for kind, text in answers if kind == "error"]
            if len(answers) < len(self.processes) or failed:
                self.kill()
            for process in self.processes:
                process.join()
        if failed:
            raise AssertionError(f"{failed[0]}\n{self.output()}")
        return [value for _, value in answers]

    def first_result(self) -> Any:
        """Return rank 0's result and kill the other ranks."""
        try:
            assert self._receivers[0].poll(TIMEOUT), f"rank 0 does not end:\n{self.output()}"
            kind, value = pickle.loads(self._receivers[0].recv_bytes())
        finally:
            self.kill()
        assert kind == "value", value
        return value

    def output(self) -> str:
        """Standard output and error of all ranks."""
        return "\n".join(
            f"--- rank {rank} ---\n{self._log_of(rank).read_text(errors='replace')}"
            for rank in range(len(self.processes))
            if self._log_of(rank).exists()
        )

    def _log_of(self, rank: int) -> Path:
        return Path(self._logs.name) / f"{rank}.log"


def run_ranks(world: int, target: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``target(*arguments)`` on ``world`` ranks and return their results."""
    return Ranks(world, target, *arguments).results()


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = 300.0, output: Callable[[], str] = str
) -> None:
    """Wait until ``condition()`` holds. A failure shows ``output()``, e.g. the log of the process waited for.

    It asks every 5 ms, because a step takes little more, but pauses for as long as a question takes: a condition may
    start a process.
    """
    began = asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - began < seconds, f"waited {seconds} s for {what} without success\n{output()}"
        time.sleep(min(0.5, max(0.005, now - asked)))
        asked = time.monotonic()


def free_port() -> int:
    """Return a free port below those of outgoing connections.

    Those may be taken before the test listens, also by a rank that tries to connect: its own end may get that port.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)  # pytest-randomly seeds the other in every worker
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _be_rank(
    rank: int, world: int, port: int, log: Path, sender: Connection, target: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        try:
            answer = ("value", target(*arguments))
        except BaseException:
            answer = ("error", traceback.format_exc())
        sender.send_bytes(
            pickle.dumps(answer)
        )  # plain: tensors would travel by file descriptors of a process that ends
        sender.close()
        if answer[0] == "error":
            os._exit(1)  # not through torch's teardown, which may wait for peers
