"""Steps whose loss or gradient is not finite: skipped on all ranks together, counted, reported, and only so many.

The skip itself is the engine's (:meth:`motionmae.engine.deepspeed_engine.Engine.backward`); here it is explained and counted.
With more than BUDGET of them in a WINDOW the run goes back to the checkpoint before the first, and on with the samples
after the last (:func:`motionmae.training.trainer.go_back`). If that does not help, it stops.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from motionmae.distributed.context import gather_objects
from motionmae.engine.deepspeed_engine import Engine
from motionmae.errors import UserError
from motionmae.training.state import TrainState

WINDOW = 1000
"""Steps over which skipped ones are counted against BUDGET."""

BUDGET = 10
"""Steps of a WINDOW that may be skipped; with one more the run goes back, once in two WINDOWs."""


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was skipped."""

    cause: str
    """loss: it was not finite; gradient: the loss was finite, its gradient not; overflow: the fp16 loss scale was too
    high, which is its normal way to find its level and not counted."""
    ranks: list[int]
    """Ranks with a loss that was not finite (none for the other causes)."""
    samples: list[int]
    """Ids of the samples those ranks had in the step."""


def examine(engine: Engine, losses: Tensor, samples: list[Tensor]) -> SkippedStep:
    """Find out why the step just taken was skipped. Collective.

    Args:
        engine: after its step.
        losses: (L,) this rank's losses in the step, those of the task: 3 in pre-training, 1 in fine-tuning.
        samples: (b,) ids of this rank's samples, one tensor a micro-batch.
    """
    bad = not bool(losses.isfinite().all())
    answers = gather_objects(torch.cat(samples).tolist() if bad else None)
    ranks = [rank for rank, ids in enumerate(answers) if ids is not None]
    if ranks:
        return SkippedStep("loss", ranks, [sample for ids in answers if ids for sample in ids])
    scale = engine.loss_scale
    return SkippedStep("gradient" if scale is None or scale.exhausted else "overflow", [], [])


def count(state: TrainState, bad: SkippedStep) -> bool:
    """Enter the skipped step, the last one of ``state``, into its books. True: more than BUDGET were in the WINDOW."""
    state.skipped += 1
    if bad.cause == "overflow":
        return False
    recent = [step for step in state.recently_skipped if step > state.step - WINDOW]
    state.recently_skipped = [*recent, state.step]
    return len(state.recently_skipped) > BUDGET


def may_roll_back(state: TrainState) -> bool:
    """Whether going back can help: not if it was done lately, and the samples passed over since did not matter."""
    return not any(state.data_step - then <= 2 * WINDOW for then in state.rollbacks)


def give_up(state: TrainState, bad: SkippedStep) -> UserError:
    """The report with which the run stops."""
    where = f"on rank {bad.ranks[0]}, samples {bad.samples[:8]}" if bad.ranks else "on all ranks"
    back = ", also after a return to an earlier checkpoint and other samples," if state.rollbacks else ""
    return UserError(
        f"loss or gradient was not finite{back} in {len(state.recently_skipped)} of the last {WINDOW} steps, at last "
        f"the {bad.cause} of step {state.step} {where}: resume with engine.precision=fp32, or start another run with a "
        "lower optim.base_lr or optim.clip_grad=0.02 (events.jsonl lists every such step with its samples)"
    )
