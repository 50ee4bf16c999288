"""Load the model of a run from one of its checkpoints, without writing to the run folder.

A missing or damaged run or checkpoint raises UserError. A linear or attentive probe also needs the run of its encoder.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from motionmae.checkpointing import load_weights
from motionmae.checkpointing.load_weights import load_state_dict_strict, newest_checkpoint
from motionmae.config import Config, load_config
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.errors import UserError
from motionmae.json_text import JsonModel
from motionmae.models.classifier import Classifier, build_classifier
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.models.vit import Encoder
from motionmae.runs.checkpoint_manifest import Count
from motionmae.runs.directory import RunFolder
from motionmae.training.finetune import load_frozen


class _Progress(JsonModel, extra="ignore"):
    step: Count


class _Task(JsonModel, extra="ignore"):
    class_names: tuple[str, ...] = ()
    frozen: str = ""


class _SavedRun(JsonModel, extra="ignore"):
    """Parts of a checkpoint's state.json that an evaluation reads."""

    trainer: _Progress
    task: _Task = _Task()


@dataclass(frozen=True)
class Pretrained:
    """Loaded pre-training model, in evaluation mode on the CPU."""

    model: MotionMAE
    config: Config
    step: int


@dataclass(frozen=True)
class Finetuned:
    """Loaded classifier, in evaluation mode on the CPU."""

    model: Classifier
    config: Config
    step: int
    class_names: tuple[str, ...]  # in the order of the logits


def choose_step(run: Path, step: int | str | None, rank: DistributedContext) -> int:
    """Return the step of the checkpoint to load: ``step`` (see :func:`newest_checkpoint`), or the newest one.

    Rank 0 finds it.

    All ranks must call this. If each rank searched by itself, a save in between could give ranks different weights.
    """

    def choose() -> int:
        _config_of(run)
        return newest_checkpoint(RunFolder(run), step).step

    return run_on_rank_zero(rank, choose)


def load_pretrained(run: Path, step: int | str | None = None) -> Pretrained:
    """Load a pre-training run from the checkpoint of ``step``, by default the newest one."""
    config, weights, saved = _load(run, step, "pretrain")
    model = build_motionmae(config)
    load_state_dict_strict(model, weights.state, weights.origin)
    return Pretrained(model.eval(), config, saved.trainer.step)


def load_finetuned(run: Path, step: int | str | None = None) -> Finetuned:
    """Load a fine-tuning run from the checkpoint of ``step``, by default the newest one."""
    config, weights, saved = _load(run, step, "finetune")
    names = saved.task.class_names
    model = build_classifier(config, len(names))
    state = dict(weights.state)
    if config.finetune.frozen:
        load_frozen(model.encoder, RunFolder(run), config.finetune.init, saved.task.model_dump())
        state |= {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    load_state_dict_strict(model, state, weights.origin)
    return Finetuned(model.eval(), config, saved.trainer.step, names)


def load_run(run: Path, step: int | str | None = None) -> Pretrained | Finetuned:
    return load_finetuned(run, step) if _config_of(run).task == "finetune" else load_pretrained(run, step)


def _config_of(run: Path) -> Config:
    path = RunFolder(run).config
    if not path.is_file():
        raise UserError(f"{run} is not a run folder, {path.name} is missing: give a run folder such as runs/demo")
    return load_config(str(path))


def _load(run: Path, step: int | str | None, task: str) -> tuple[Config, load_weights.Weights, "_SavedRun"]:
    config = _config_of(run)
    if config.task != task:
        raise UserError(f"{run} has task={config.task}: give the folder of a run with task={task}")
    checkpoint = newest_checkpoint(RunFolder(run), step)
    return config, load_weights.load_state(checkpoint.folder), checkpoint.state(_SavedRun)


class Embedding(nn.Module):
    """Model that maps clips (B, T, H, W, 3) to features (B, width), the mean of the encoder's tokens."""

    def __init__(self, encoder: Encoder, cube_size: int):
        super().__init__()
        self.encoder, self.cube_size = encoder, cube_size

    def forward(self, clips: Tensor) -> Tensor:
        return self.encoder(cut_patches(clips, self.cube_size)).mean(1)


def load_embedding(run: Path, step: int | str | None = None) -> tuple[Embedding, Config, int]:
    """Load the encoder of a run as an :class:`Embedding`; return the embedding, the config and the step."""
    loaded = load_run(run, step)
    return Embedding(loaded.model.encoder, loaded.config.clip.cube_size), loaded.config, loaded.step
