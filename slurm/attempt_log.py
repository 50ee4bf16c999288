"""The memory of a run on Slurm: on which nodes its attempts started, and how they failed.

``RUN/attempts.jsonl`` is only ever appended to, a line a start or a failure. From it follow which nodes the run keeps
away from and whether a failed job is worth another try; deleting the file forgives all nodes.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from motionmae.runs.attempt import Attempt
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import LineFile, Row, read_rows

FAILURES = 2
"""A node on which a run failed so often is not used for it again; a failed pre-flight suffices by itself."""


class Attempts:
    """Reads and adds to the memory of the run in ``run``."""

    def __init__(self, run: Path) -> None:
        self.path = run / "attempts.jsonl"

    def started(self, attempt: Attempt, nodes: Sequence[str]) -> None:
        """Note where ``attempt`` begins."""
        self._append({"what": "start", "job": attempt.job, "restart": attempt.restart, "nodes": list(nodes)})

    def failed(self, attempt: Attempt, reason: EndReason, step: int, node: str = "") -> None:
        """Note that ``attempt`` failed, by the fault of ``node``, when the newest checkpoint was that of ``step``."""
        row = {"what": "failure", "job": attempt.job, "restart": attempt.restart}
        self._append({**row, "reason": reason, "step": step, "node": node})

    def last_start(self) -> tuple[Attempt, list[str]] | None:
        """The attempt that started last, and its nodes."""
        starts = [row for row in read_rows(self.path) if row["what"] == "start"]
        return (Attempt(job=starts[-1]["job"], restart=starts[-1]["restart"]), starts[-1]["nodes"]) if starts else None

    def excluded(self) -> dict[str, str]:
        """Nodes not to be used again, each with the reason."""
        faults: dict[str, list[Row]] = {}
        for row in self._failures():
            if row["node"]:
                faults.setdefault(row["node"], []).append(row)
        return {
            node: " and ".join(EndReason(row["reason"]).description for row in rows[-FAILURES:])
            for node, rows in sorted(faults.items())
            if len({(row["job"], row["restart"]) for row in rows}) >= FAILURES
            or any(row["reason"] == EndReason.BAD_NODE for row in rows)
        }

    def knows(self, attempt: Attempt, node: str) -> bool:
        """Whether it is noted that ``attempt`` failed by the fault of ``node``."""
        key = attempt.job, attempt.restart, node
        return any((row["job"], row["restart"], row["node"]) == key for row in self._failures())

    def failures_without_progress(self, job: str) -> int:
        """How many attempts of ``job`` have failed since one last brought a new checkpoint."""
        failures = [row for row in self._failures() if row["job"] == job]
        return len({row["restart"] for row in failures if row["step"] == failures[-1]["step"]})

    def _failures(self) -> list[Row]:
        return [row for row in read_rows(self.path) if row["what"] == "failure"]

    def _append(self, row: Row) -> None:
        file = LineFile(self.path)
        try:
            file.append({**row, "time": time.time()})
        finally:
            file.close()
