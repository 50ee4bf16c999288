"""What a run trains: pre-training and fine-tuning are tasks of the same engine, loop and checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.motionmae import no_decay

Groups = list[dict[str, Any]]
"""Parameter groups: ``params``, ``weight_decay`` and, where the learning rate is not the run's own, ``lr_scale``."""


class Task(Protocol):
    """A model and its losses. Made from a config alone; the same on every rank."""

    losses: tuple[str, ...]
    """Keys in ``metrics.jsonl`` of what :meth:`forward` returns; the first, ``loss``, is what is minimised."""
    needs_flow: bool
    """Whether batches must bring optical flow."""
    needs_labels: bool
    """Whether every sample must have a class."""

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """Settle for all ranks which weights :meth:`build_model` begins with, before it is called. Collective.

        Args:
            rank: this process.
            saved: as :meth:`build_model` will have it.

        Raises:
            UserError: they cannot be had.
        """

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        """The model with its initial weights; asked for on rank 0 before the others.

        Args:
            manifest: of the shards it will be trained on.
            saved: :meth:`state` in the checkpoint that will replace every trained weight; None for a new run.

        Raises:
            UserError: if the shards, or weights to begin with, do not fit.
        """

    def parameter_groups(self, model: nn.Module) -> Groups:
        """What AdamW updates, asked before ZeRO takes the model over."""

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        """The 0-dim losses of a micro-batch that is on the engine's device, in the order of ``losses``."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must say besides weights for others to use them; JSON."""


def decay_groups(model: nn.Module, config: Config) -> Groups:
    """Two groups: what decays, and what does not (:func:`motionmae.models.motionmae.no_decay`)."""
    exempt = no_decay(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [
        {
            "params": [p for name, p in trained.items() if name not in exempt],
            "weight_decay": config.optim.weight_decay,
        },
        {"params": [p for name, p in trained.items() if name in exempt], "weight_decay": 0.0},
    ]
