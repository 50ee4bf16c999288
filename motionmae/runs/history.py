"""What a run folder tells, gathered for the report and the live view."""

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from monitoring.flops_per_clip import FlopsPerClip, flops_per_clip_of
from monitoring.goodput import Goodput, GoodputTracker, ledger_of
from motionmae.config import Config, load_config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row, current_rows, idle_category, read_rows

_PAUSING = (Kind.STOP.value, Kind.FAILURE.value, Kind.SUBMITTED.value)
_LATELY = 900.0
"""Seconds without a sign after which a run is no longer said to be under way."""


@dataclass
class Life:
    """One attempt."""

    began: float
    """When its process was started, in seconds since the epoch."""
    hosts: list[str]
    world: int
    ready: float | None = None
    """When its first step began."""
    first_step: int = 0
    """Steps done before its own."""
    last_step: int = 0
    ended: float = 0.0
    """Its last sign of life."""
    end: EndReason | None = None
    """How it ended. None without a word: it runs, or it was lost."""
    error: str = ""
    """The error that ended it."""
    pauses: list[tuple[float, str]] = field(default_factory=list)
    """What was said when it was over: the moment, and the cause that the time since then has in the books."""

    @property
    def ended_by(self) -> str:
        """A clause that says how it ended."""
        return self.error or (self.end.description if self.end else "silent")

    def silence(self, until: float) -> list[tuple[float, float, str]]:
        """Stretches of the time after it, (begin, end, cause), until the next one begins."""
        marks = [(self.ended, "downtime"), *((max(moment, self.ended), cause) for moment, cause in self.pauses)]
        stretches = pairwise([*marks, (until, "")])
        return [(begin, end, cause) for (begin, cause), (end, _) in stretches if begin < end]


@dataclass
class Story:
    """A run."""

    name: str
    folder: Path
    events: list[Row]
    rows: list[Row]
    """One metrics row a logged step, steps rising: what a later attempt repeated replaces the former."""
    lives: list[Life]
    goodput: Goodput
    config: Config | None
    """None where config.yaml is missing or of another version."""
    submitted: list[float] = field(default_factory=list)

    @property
    def resumes(self) -> list[int]:
        """First logged step of every attempt but the first."""
        return [b["step"] for a, b in pairwise(self.rows) if a["attempt"] != b["attempt"]]

    @property
    def total_steps(self) -> int | None:
        """Steps the run will take; None before it is ready."""
        totals = [row["total_steps"] for row in self.events if row["kind"] == Kind.READY.value]
        return totals[-1] if totals else None

    @property
    def state(self) -> str:
        """How it stands, in a word or two."""
        if not self.lives:
            return "submitted"
        if end := self.lives[-1].end:
            return end.run_state
        return "under way" if time.time() - self.lives[-1].ended < _LATELY else "silent"

    @property
    def losses(self) -> list[str]:
        """Keys of the losses, as the run logged them."""
        keys = [key for key in self.rows[-1] if key == "loss" or key.startswith("loss_")] if self.rows else []
        return [key for key in keys if any(row.get(key) for row in self.rows)]

    def of(self, *kinds: Kind) -> list[Row]:
        """Events of some kinds."""
        names = {kind.value for kind in kinds}
        return [row for row in self.events if row["kind"] in names]

    def slowest(self) -> Counter[int]:
        """How often each rank was the slowest of all by a tenth or more, by logged steps."""
        return Counter(row["slowest_rank"] for row in self.rows if row.get("slowest_score", 0) > 1.1)

    def host_of(self, rank: int) -> str:
        """The host that a rank of the last attempt ran on."""
        life = self.lives[-1]
        return life.hosts[rank * len(life.hosts) // life.world] if life.hosts else "?"

    def work(self) -> FlopsPerClip | None:
        """What a clip takes; None where the config is not known."""
        return flops_per_clip_of(self.config) if self.config else None


def read_story(run: Path) -> Story:
    """Read a run folder, which need not be complete.

    Raises:
        UserError: if it is no run's.
    """
    folder = RunFolder(run)
    events = [row for row in read_rows(folder.events) if "kind" in row and "time" in row]
    if not events:
        raise UserError(f"{folder.events} tells of nothing: give the folder of a run that has begun, such as runs/demo")
    all_rows = [row for row in read_rows(folder.metrics) if "time" in row and "step" in row]
    ledger: GoodputTracker = ledger_of([*events, *all_rows])
    try:
        config = load_config(str(folder.config)) if folder.config.is_file() else None
    except UserError:
        config = None
    return Story(
        name=run.resolve().name,
        folder=run,
        events=events,
        rows=current_rows(folder.metrics),
        lives=lives_of(events, all_rows),
        goodput=ledger.account(),
        config=config,
        submitted=[row["time"] for row in events if row["kind"] == Kind.SUBMITTED.value],
    )


def lives_of(events: list[Row], rows: list[Row]) -> list[Life]:
    """The attempts, in order; starting a finished run again makes none."""
    lives: dict[str, Life] = {}
    for row in events:
        name, kind = row.get("attempt", ""), row["kind"]
        if kind == Kind.START.value:
            if lives and list(lives.values())[-1].end is EndReason.FINISHED:
                break
            lives[name] = Life(
                row["time"] - row.get("age", 0.0), row.get("hosts", [row.get("host", "?")]), row["world"]
            )
        elif kind in _PAUSING and lives:
            list(lives.values())[-1].pauses.append((row["time"], idle_category(row)))
        if name not in lives:
            continue
        life = lives[name]
        if kind == Kind.FAILURE.value:  # the batch script's word, after the life was over
            life.end = life.end or EndReason(row["reason"])
            continue
        life.ended = row["time"]
        if kind == Kind.READY.value:
            life.ready, life.first_step, life.last_step = row["time"], row["step"], row["step"]
        elif kind == Kind.STOP.value:
            life.end, life.error = EndReason(row["reason"]), row.get("error", "")
        elif kind == Kind.FINISH.value:
            life.end = EndReason.FINISHED
    for row in rows:
        if life := lives.get(row["attempt"]):  # type: ignore[assignment]
            life.last_step = row["step"]
            life.ended = max(life.ended, row["time"])
    return list(lives.values())
