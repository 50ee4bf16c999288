"""Guard against non-finite steps: find why steps were skipped, and decide when a run has skipped too many.

The engine skips a step with a non-finite loss or gradient on all ranks. More than BUDGET skipped steps in a WINDOW
cause a rollback to the checkpoint before the first skipped step; training continues with the samples that follow the
last skipped step. If too many steps are skipped again soon after a rollback, the run stops.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from motionmae.distributed.context import gather_objects
from motionmae.engine.deepspeed_engine import Engine
from motionmae.errors import UserError
from motionmae.training.state import TrainState

WINDOW = 1000  # steps over which skipped steps are counted

BUDGET = 10  # skipped steps allowed in a WINDOW


@dataclass(frozen=True)
class SkippedStep:
    """Cause of a skipped step.

    ``cause`` is "loss" if a loss was not finite, "gradient" if only the gradient was not finite, and "overflow" if the
    fp16 loss scale was too high. Overflows are normal and do not count.
    """

    cause: str
    ranks: list[int]  # ranks with a non-finite loss; empty for the other causes
    samples: list[int]  # sample IDs that the ranks in ``ranks`` used in the step


def find_cause(engine: Engine, losses: Tensor, samples: list[Tensor]) -> SkippedStep:
    """Find the cause of a skipped step from this rank's losses (L,) and sample IDs (b,) per micro-batch.

    All ranks must call this.
    """
    nonfinite = not bool(losses.isfinite().all())
    answers = gather_objects(torch.cat(samples).tolist() if nonfinite else None)
    ranks = [rank for rank, ids in enumerate(answers) if ids is not None]
    if ranks:
        return SkippedStep("loss", ranks, [sample for ids in answers if ids for sample in ids])
    scale = engine.loss_scale
    return SkippedStep("gradient" if scale is None or scale.exhausted else "overflow", [], [])


def count_skipped(state: TrainState, skipped: SkippedStep) -> bool:
    """Count the last step of ``state`` as skipped; return True if the WINDOW now has more than BUDGET skipped steps."""
    state.skipped += 1
    if skipped.cause == "overflow":
        return False
    recent = [step for step in state.recently_skipped if step > state.step - WINDOW]
    state.recently_skipped = [*recent, state.step]
    return len(state.recently_skipped) > BUDGET


def may_roll_back(state: TrainState) -> bool:
    """Return False within two WINDOWs of a rollback, where other samples have not helped."""
    return not any(state.data_step - data_step <= 2 * WINDOW for data_step in state.rollbacks)


def too_many_skipped(state: TrainState, skipped: SkippedStep) -> UserError:
    where = f"on rank {skipped.ranks[0]}, samples {skipped.samples[:8]}" if skipped.ranks else "on all ranks"
    rollback = ", also after a rollback to an earlier checkpoint and other samples," if state.rollbacks else ""
    return UserError(
        f"loss or gradient was not finite{rollback} in {len(state.recently_skipped)} of the last {WINDOW} steps, most "
        f"recently the {skipped.cause} of step {state.step} {where}: resume with engine.precision=fp32, or start "
        "another run with a lower optim.base_lr or optim.clip_grad=0.02 (events.jsonl lists the skipped steps with "
        "their samples)"
    )
