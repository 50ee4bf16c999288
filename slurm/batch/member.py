"""A process of a job step as a member of the supervisor's roll call."""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from motionmae.json_text import parse_json
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row, Sink
from motionmae.runs.history import START_VARIABLE
from motionmae.text import get_logger, say
from slurm import scontrol
from slurm.batch.connections import is_lost, keep_alive
from slurm.batch.protocol import (
    LINE_LIMIT,
    VARIABLE,
    Assignment,
    Challenge,
    Hello,
    Invitation,
    Process,
    Report,
    Welcome,
    is_proof,
    line,
    new_token,
    proof,
)

logger = get_logger(__name__)

CONNECT_SECONDS = 60.0
"""Time to reach the supervisor."""
GONE_SECONDS = 30.0
"""Time in which the killed processes of an earlier attempt must leave this node; a driver can hold them for ever."""
TURN_SECONDS = 5.0
"""Time that a node has to requeue the job before the next node tries, and between two questions to Slurm."""
LOST_SECONDS = 900.0
"""Time that Slurm has to find the batch host down (SlurmdTimeout, 300 s by default)."""
ALIVE_SECONDS = 5.0
"""Time between two signs of life of a rank."""
_LOWEST_PRIORITY = 19


class Membership(Sink):
    """Connection of this process to the supervisor; as a sink of events it reports the attempt's first step."""

    def __init__(self, invitation: Invitation) -> None:
        self.standby = invitation.standby
        self._connection = connect(invitation.host, invitation.port)
        keep_alive(self._connection, invitation.heartbeat_seconds)
        self._lines = self._connection.makefile("rb")
        self._sending = threading.Lock()
        self._left = threading.Event()
        self._greet(invitation)

    def _greet(self, invitation: Invitation) -> None:
        challenge, nonce = parse_json(self._read(), Challenge), new_token()
        hello = Hello(
            node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            launch=invitation.launch,
            step=int(os.environ.get("SLURM_STEP_ID") or 0),
            local_rank=int(os.environ["SLURM_LOCALID"]),
            process=Process(pid=os.getpid(), began=start_ticks(os.getpid()) or 0),
            nonce=nonce,
            proof=proof(invitation.token, "process", challenge.nonce, nonce),
        )
        self._connection.sendall(line(hello))
        welcome = parse_json(self._read(), Welcome)
        if not is_proof(welcome.proof, invitation.token, "supervisor", challenge.nonce, nonce):
            raise PermissionError("another program answers at the address of the supervisor")

    def wait(self, prepare: Callable[[], None]) -> Assignment:
        """Prepare for training in a thread, and wait for the assignment.

        A standby process prepares at the lowest priority, and ends quietly when it is told to, at SIGTERM and at
        SIGUSR2.
        """
        if self.standby:
            name_process("standby")
            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, lambda *_: os._exit(0))
        preparation = threading.Thread(target=_at_priority, args=(self.standby, prepare), daemon=True)
        preparation.start()
        assignment = self._receive()
        threading.Thread(target=self._watch, daemon=True).start()
        threading.Thread(target=self._sign, daemon=True).start()
        if self.standby:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, preparation.native_id or 0, 0)  # root may
        end_predecessors(assignment.predecessors)
        preparation.join()
        return assignment

    def _receive(self) -> Assignment:
        """Return the assignment; do not return where there is none for this process."""
        try:
            assignment = parse_json(self._read(), Assignment, limit=LINE_LIMIT)
        except OSError as error:
            say(f"error: {error}", file=sys.stderr)
            if is_lost(error.__cause__ or error):
                requeue_without_supervisor()
            os._exit(0 if self.standby else EndReason.LOST_PEERS.exit_code)
        if not assignment.nodes:
            os._exit(0)
        return assignment

    def _watch(self) -> None:
        """Requeue the job if the batch host is lost."""
        try:
            self._lines.read()
        except OSError as error:
            if is_lost(error):
                requeue_without_supervisor()

    def _sign(self) -> None:
        """Tell the supervisor that this process runs.

        A process that is stopped, or whose libraries hold Python's lock, cannot; then its watchdog does not run either.
        """
        while not self._left.wait(ALIVE_SECONDS):
            self._report(Report(what="alive"))

    def event(self, row: Row) -> None:
        if row["kind"] == Kind.FIRST_STEP:
            self._report(Report(what="trains"))

    def leave(self, status: int) -> None:
        """Announce the exit status of this process."""
        self._left.set()
        self._report(Report(what="leaves", status=status & 0xFF))
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # ends the watching thread, which would hold up the exit

    def _report(self, report: Report) -> None:
        with self._sending, suppress(OSError):  # the end of the connection says the same
            self._connection.sendall(line(report))

    def _read(self) -> bytes:
        try:
            text = self._lines.readline(LINE_LIMIT)
        except OSError as error:
            raise ConnectionError(f"the supervisor of this job does not answer ({error})") from error
        if not text:
            raise ConnectionError("the supervisor of this job has ended")
        return text


def requeue_without_supervisor(seconds: float = math.inf) -> None:
    """Requeue this job once Slurm has found its batch host down; return when it is requeued or has ended.

    Gives up after ``seconds``. Slurm 22.05 lets a job with ``--no-kill`` run on without its batch script. The nodes
    take turns. A node that was cut off itself, and sees the controller again, finds that the batch host is up.
    """
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if int(os.environ["SLURM_LOCALID"]):
        return
    end = time.monotonic() + seconds
    time.sleep(TURN_SECONDS * int(os.environ.get("SLURM_NODEID") or 0))
    while (state := scontrol.show_job(job)) is None or (state.name == "RUNNING" and state.restarts == restart):
        if time.monotonic() > end:
            return
        if state is not None and scontrol.down_nodes([state.batch_host]):
            say(f"node {state.batch_host} of the batch script is down: job {job} is requeued", file=sys.stderr)
            scontrol.requeue(job)
        time.sleep(TURN_SECONDS)


def join() -> Membership | None:
    """Join the roll call; None for a process that no supervisor has started.

    Raises:
        ConnectionError: the supervisor does not answer. Before, the job has ended or is requeued, or LOST_SECONDS are
            over: another program may stand between the nodes, such as a firewall.
    """
    text = os.environ.pop(VARIABLE, "")  # not for child processes
    if not text:
        return None
    try:
        return Membership(parse_json(text.encode(), Invitation))
    except ConnectionError:  # the batch host may have been lost since it started this step
        requeue_without_supervisor(LOST_SECONDS)
        raise


def connect(host: str, port: int) -> socket.socket:
    """Connect to the supervisor, or raise ConnectionError after CONNECT_SECONDS."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(
                    f"the supervisor of this job at {host}:{port} cannot be reached ({error})"
                ) from error
            time.sleep(0.5)
        else:
            connection.settimeout(None)
            return connection


def take_place(assignment: Assignment) -> None:
    """Set Slurm's variables to those of a rank on the assigned nodes; those of a standby process differ."""
    nodes, ranks_per_node = assignment.nodes, assignment.ranks_per_node
    listed = ",".join(nodes)
    os.environ.update(
        SLURM_PROCID=str(assignment.rank),
        SLURM_NTASKS=str(len(nodes) * ranks_per_node),
        SLURM_STEP_NUM_TASKS=str(len(nodes) * ranks_per_node),
        SLURM_NODEID=str(assignment.rank // ranks_per_node),
        SLURM_LOCALID=str(assignment.rank % ranks_per_node),
        SLURM_JOB_NUM_NODES=str(len(nodes)),
        SLURM_NNODES=str(len(nodes)),
        SLURM_STEP_NUM_NODES=str(len(nodes)),
        SLURM_JOB_NODELIST=listed,
        SLURM_STEP_NODELIST=listed,
    )
    os.environ[START_VARIABLE] = str(assignment.start)
    name_process(f"rank{assignment.rank}#{assignment.start}")


def name_process(name: str) -> None:
    """Name this process for ``ps`` and ``top``, in at most 15 characters without a space.

    Slurm's proctrack/linuxproc splits /proc/PID/stat at spaces. It would not find the process, so it could not kill it,
    and would drain the node ("Kill task failed").
    """
    assert not any(character.isspace() for character in name), name
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def name_thread(name: str) -> None:
    """Name the thread of the caller for ``top -H``, in at most 15 characters."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)


def end_predecessors(processes: list[Process]) -> None:
    """Kill processes of an earlier attempt on this node and wait until they and their GPU memory are gone.

    Exits as a bad node if one stays for GONE_SECONDS: a process that waits for a driver cannot be killed.
    """
    end = time.monotonic() + GONE_SECONDS
    for process in processes:
        while start_ticks(process.pid) == process.began:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            if time.monotonic() > end:
                say(f"error: process {process.pid} of an earlier attempt cannot be killed", file=sys.stderr)
                os._exit(EndReason.BAD_NODE.exit_code)
            time.sleep(0.02)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _at_priority(lowest: bool, action: Callable[[], None]) -> None:
    if lowest:  # of this thread only: without privileges, a process cannot raise its priority again
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        name_thread("low priority")
    try:
        action()
    except Exception as error:
        logger.debug("the preparation failed (%s); training will meet the same error", error)
