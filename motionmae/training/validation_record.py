"""What a run remembers of its validations: the best checkpoint, and when to stop early. Checkpoints store it."""

from dataclasses import dataclass, replace

from motionmae.runs.best_checkpoint import Best
from motionmae.runs.checkpoint_manifest import Count
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.formatting import describe_figures

LOWER_IS_BETTER = ("loss",)


@dataclass(frozen=True)
class ValidationRecord:
    """Record of the validations up to a step, the same on every rank."""

    step: Count = 0  # step of the last validation; 0 before the first one
    best: Best | None = None
    waited: Count = 0  # validations since the best one
    owed: bool = False  # whether a stop skipped the validation of this step; the next attempt begins with it
    protocol: str = ""  # what the figures depend on; figures of other protocols cannot be compared

    def after(self, step: int, metric: str, value: float | None, min_delta: float) -> "ValidationRecord":
        """Return the record after the validation of ``step``; ``value`` is None if the metric is off."""
        if value is None:
            return replace(self, step=step, owed=False)
        gain = -min_delta if metric in LOWER_IS_BETTER else min_delta
        is_best = value == value and (self.best is None or self._exceeds(metric, value, self.best.value + gain))
        if not is_best:
            return replace(self, step=step, owed=False, waited=self.waited + 1)
        return replace(self, step=step, owed=False, best=Best(step, metric, value), waited=0)

    @staticmethod
    def _exceeds(metric: str, value: float, limit: float) -> bool:
        return value < limit if metric in LOWER_IS_BETTER else value > limit

    def without_lost_best(self, store: CheckpointStore) -> "ValidationRecord":
        """Return the record without its best if the checkpoint is gone: the next validation is the best then."""
        if self.best is None or self.best.step in [checkpoint.step for checkpoint in store.complete()]:
            return self
        return replace(self, best=None, waited=0)

    def describe_other_best(self, step: int) -> str:
        """Return the end of a sentence about the weights of ``step``: where better ones are; empty without any."""
        if self.best is None or self.best.step == step:
            return ""
        figure = describe_figures({self.best.metric: self.best.value})
        return f"; --step best takes those of step {self.best.step}, the best by validation ({figure})"

    def under(self, protocol: str) -> "ValidationRecord":
        """Return the record for validations under ``protocol``; another protocol begins a new search for the best."""
        return self if protocol == self.protocol else ValidationRecord(protocol=protocol, owed=self.owed)
