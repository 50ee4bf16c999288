"""Definition of a check, of the setting in which it runs, and of its result."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from motionmae.json_text import JsonModel

Figures = dict[str, Any]
"""JSON values that a check measured, by name."""


class Verdict(StrEnum):
    """Verdict of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


class CheckError(Exception):
    """Failure of a check: an expectation that does not hold. ``figures`` keeps what was measured until then."""

    def __init__(self, problem: str, figures: Figures) -> None:
        super().__init__(problem)
        self.figures = figures


class NotRunError(Exception):
    """Reason why a check cannot run on this machine."""


@dataclass(frozen=True)
class Check:
    """Entry of the catalogue (:mod:`motionmae.gpu_checks.catalogue`)."""

    name: str
    function: str  # "module:function", which takes a Setting and returns Figures
    shown: str  # keys of the figures in the table; dots separate the keys of nested figures
    limit: int  # seconds after which the check counts as failed
    min_seconds: int = 0  # seconds that must be left of the total time, or the check does not begin
    needs_gpu: bool = True
    needs_gpus: bool = False  # several GPUs, or several ranks on the CPU
    on_each: bool = False  # in a process for each GPU
    essential: bool = False  # no other check makes sense if this one fails
    only_full: bool = False  # left out by --quick
    alone: bool = False  # on a GPU in a process of its own: without memory or a context of other checks


class Setting(JsonModel):
    """Setting in which the checks run. The parent passes it to its worker processes as JSON."""

    device: str  # cuda or cpu
    quick: bool
    folder: Path  # for temporary files
    ranks: int = 1  # processes of a check of several GPUs

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def time_factor(self) -> int:
        """Factor of all time limits: a CPU is slower, and may be shared with other programs."""
        return 1 if self.on_gpu else 5


class CheckResult(JsonModel):
    """Result of one check."""

    name: str
    verdict: Verdict
    seconds: float = 0.0
    figures: dict[str, object] = Field(default_factory=dict)
    not_run: tuple[str, ...] = ()  # parts of the check that need a GPU
    problem: str = ""


def require(holds: bool, problem: str, figures: Figures) -> None:
    """Raise CheckError with ``problem`` unless ``holds``."""
    if not holds:
        raise CheckError(problem, figures)
