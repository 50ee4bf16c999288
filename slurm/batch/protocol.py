"""Messages between the supervisor in the batch script and the processes of its job steps: JSON lines with a schema.

Both sides prove that they know the token of the job before anything else is said (HMAC with SHA-256 over two nonces).
The token reaches the processes in the environment of srun, which only the user and root can read.
"""

import hashlib
import hmac
import secrets
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from motionmae.config.text_types import NodeName
from motionmae.json_text import JsonModel

VARIABLE = "MOTIONMAE_ROLL_CALL"
"""Environment variable of a step's processes with the :class:`Invitation`."""
LINE_LIMIT = 1 << 20
"""Bytes of a message; an assignment names all nodes."""
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Invitation(JsonModel):
    """What a process needs to join the roll call."""

    host: Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]{2,45}$")]  # an IP address
    port: Annotated[int, Field(ge=1, le=65535)]
    token: _Hex
    launch: PositiveInt  # number of the step among those that the supervisor has started
    standby: bool
    heartbeat_seconds: NonNegativeInt


class Challenge(JsonModel):
    """First line of the server."""

    nonce: _Hex


class Process(JsonModel):
    """A process on a node. The start time tells it from a later process with its number."""

    pid: PositiveInt
    began: NonNegativeInt  # clock ticks since the node booted


class Hello(JsonModel):
    """First line of a process."""

    node: NodeName
    launch: PositiveInt
    step: NonNegativeInt  # Slurm's number of the step
    local_rank: NonNegativeInt
    process: Process
    nonce: _Hex
    proof: _Hex


class Welcome(JsonModel):
    """Second line of the server, which proves that it knows the token."""

    proof: _Hex


class Assignment(JsonModel):
    """Order to a process: to train as ``rank``, or, without nodes, to end."""

    rank: NonNegativeInt = 0
    start: NonNegativeInt = 0  # number of the attempt since the job was last queued
    ranks_per_node: PositiveInt = 1
    nodes: list[NodeName] = Field(default_factory=list)
    predecessors: list[Process] = Field(default_factory=list)  # of earlier attempts here; they must be gone first


class Report(JsonModel):
    """Line of a process: its attempt takes steps, it runs, or it is about to exit with ``status``."""

    what: Literal["trains", "alive", "leaves"]
    status: Annotated[int, Field(ge=0, le=255)] = 0


def new_token() -> str:
    return secrets.token_hex(32)


def proof(token: str, who: Literal["process", "supervisor"], *nonces: str) -> str:
    """Return the proof that its sender knows ``token``."""
    return hmac.new(bytes.fromhex(token), " ".join([who, *nonces]).encode(), hashlib.sha256).hexdigest()


def is_proof(given: str, token: str, who: Literal["process", "supervisor"], *nonces: str) -> bool:
    return hmac.compare_digest(given, proof(token, who, *nonces))


def line(message: JsonModel) -> bytes:
    return message.model_dump_json().encode() + b"\n"
