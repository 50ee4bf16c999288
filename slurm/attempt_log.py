"""Log of a run's attempts on Slurm: their nodes and their failures.

``RUN/attempts.jsonl`` gets a line for each start and each failure. It determines which nodes the run avoids and whether
a failed job is retried. Delete the file to use all nodes again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from motionmae.config.text_types import JobId, NodeName
from motionmae.json_text import JsonModel, describe_fault
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import append_row, read_rows
from motionmae.runs.history import Attempt
from motionmae.text import get_logger

logger = get_logger(__name__)

FAILURES_TO_EXCLUDE = 2
"""Attempts that must fail because of a node before the run avoids it. A failed pre-flight check counts at once."""


class _Row(JsonModel):
    """Fields of every row. They are untrusted, and the names of nodes become arguments of Slurm's commands."""

    model_config = ConfigDict(extra="ignore")

    job: JobId
    restart: NonNegativeInt
    start: NonNegativeInt = 0


class _Start(_Row):
    what: Literal["start"]
    nodes: list[NodeName]
    step_id: NonNegativeInt = 0


class _Failure(_Row):
    what: Literal["failure"]
    reason: Annotated[EndReason, Field(strict=False)]
    step: NonNegativeInt
    node: NodeName | Literal[""]


_ROWS: TypeAdapter[_Start | _Failure] = TypeAdapter(Annotated[_Start | _Failure, Field(discriminator="what")])
_NODE = TypeAdapter(NodeName)


class AttemptLog:
    """Reader and writer of a run's attempts.jsonl. Rows that do not match the schema are ignored with a warning."""

    def __init__(self, run: Path) -> None:
        self.path = run / "attempts.jsonl"
        self._warned = False

    def log_start(self, attempt: Attempt, nodes: Sequence[str], launch: int = 1, step_id: int = 0) -> None:
        """Append the start of an attempt: its nodes, the supervisor's number of its job step, and Slurm's."""
        self._append("start", attempt, nodes=list(nodes), launch=launch, step_id=step_id)

    def log_failure(self, attempt: Attempt, reason: EndReason, step: int, node: str = "") -> None:
        """Append the failure of an attempt: ``step`` of the newest checkpoint, and the ``node`` at fault, if known."""
        node = node if _is_node(node) else ""  # from a message of srun; the failure counts without a node, too
        self._append("failure", attempt, reason=reason, step=step, node=node)

    def _append(self, what: Literal["start", "failure"], attempt: Attempt, **fields: Any) -> None:
        identity = {"job": attempt.job, "restart": attempt.restart, "start": attempt.start}
        append_row(self.path, what=what, **identity, **fields)

    def last_start(self) -> tuple[Attempt, list[str]] | None:
        """Return the newest attempt and its nodes; None before the first attempt."""
        starts = [row for row in self._rows() if isinstance(row, _Start)]
        if not starts:
            return None
        last = starts[-1]
        return Attempt(job=last.job, restart=last.restart, start=last.start), last.nodes

    def last_step_id(self, job: str) -> int:
        """Return the highest ID of a job step of ``job`` since it was last queued; -1 if there is none."""
        starts = [row for row in self._rows() if isinstance(row, _Start) and row.job == job]
        return max((row.step_id for row in starts if row.restart == starts[-1].restart), default=-1)

    def excluded_nodes(self) -> dict[str, str]:
        """Return the nodes that the run avoids, each with the reason, in the order of their last failures."""
        failures_of: dict[str, list[_Failure]] = {}
        for row in self._failures():
            if row.node:
                failures_of[row.node] = [*failures_of.pop(row.node, []), row]
        return {
            node: " and ".join(row.reason.description for row in rows[-FAILURES_TO_EXCLUDE:])
            for node, rows in failures_of.items()
            if len({(row.job, row.restart, row.start) for row in rows}) >= FAILURES_TO_EXCLUDE
            or any(row.reason is EndReason.BAD_NODE for row in rows)
        }

    def has_failure(self, attempt: Attempt, node: str) -> bool:
        key = attempt.job, attempt.restart, attempt.start, node
        return any((row.job, row.restart, row.start, row.node) == key for row in self._failures())

    def has_lost_node(self, job: str) -> bool:
        """Return whether an attempt of ``job`` has lost a node."""
        return any(row.job == job and row.reason is EndReason.NODE_DOWN for row in self._failures())

    def failures_without_progress(self, *jobs: str) -> int:
        """Count the failed attempts of ``jobs`` since their newest checkpoint."""
        failures = [row for row in self._failures() if row.job in jobs]
        return len({(row.job, row.restart, row.start) for row in failures if row.step == failures[-1].step})

    def _failures(self) -> list[_Failure]:
        return [row for row in self._rows() if isinstance(row, _Failure)]

    def _rows(self) -> list[_Start | _Failure]:
        rows = []
        for row in read_rows(self.path):
            try:
                rows.append(_ROWS.validate_python(row))
            except ValidationError as error:
                if not self._warned:
                    fault = describe_fault(error)
                    logger.warning("%s: ignoring rows of another form (%s): delete these lines", self.path, fault)
                self._warned = True
        return rows


def _is_node(name: str) -> bool:
    try:
        _NODE.validate_python(name)
    except ValidationError:
        return False
    return True
