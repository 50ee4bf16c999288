"""The model of a run as its checkpoint has it, for everything that looks at what was learned."""

from dataclasses import dataclass
from pathlib import Path

from motionmae.config import Config, load_config
from motionmae.errors import UserError
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.training.checkpoint import load_weights
from motionmae.training.checkpoint_store import CheckpointStore
from motionmae.training.runfolder import RunFolder


@dataclass(frozen=True)
class Pretrained:
    """A trained model, in evaluation mode on the CPU, and where it comes from."""

    model: MotionMAE
    config: Config
    step: int


def load_pretrained(run: Path, step: int | None = None) -> Pretrained:
    """Load a run's checkpoint of ``step``, or its newest; the run folder is only read.

    Raises:
        UserError: if there is no such run or checkpoint, or its files are damaged.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise UserError(f"{run} is no run folder, it has no {folder.config.name}: give one such as runs/demo")
    complete = CheckpointStore(folder.checkpoints).complete()
    chosen = [checkpoint for checkpoint in complete if step in (None, checkpoint.step)]
    if not chosen:
        there = ", ".join(str(checkpoint.step) for checkpoint in complete) or "none yet"
        raise UserError(
            f"{folder.checkpoints} has no checkpoint{f' of step {step}' if step else ''}: there are {there}"
        )
    config = load_config(str(folder.config))
    model = build_motionmae(config)
    model.load_state_dict(load_weights(chosen[-1].folder))
    return Pretrained(model.eval(), config, chosen[-1].step)
