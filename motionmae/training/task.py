"""Protocol of a task. Pre-training and fine-tuning share the trainer, the engine, and the checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from motionmae.config import OptimConfig
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.motionmae import no_decay

Groups = list[dict[str, Any]]
"""Parameter groups: ``params``, ``weight_decay`` and, for layer-wise decay, ``lr_scale``."""


class Task(Protocol):
    """A model and its losses, built from a config, with the same result on every rank."""

    losses: tuple[str, ...]
    """Names in ``metrics.jsonl`` of the losses that :meth:`forward` returns; the first, ``loss``, is minimised."""
    needs_flow: bool  # whether batches must contain optical flow
    needs_labels: bool  # whether every sample must have a class

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """Choose the initial weights for all ranks. Called before :meth:`build_model`. Collective.

        Raises:
            UserError: the weights do not exist.
        """

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        """Build the model with its initial weights. Rank 0 calls this method before the other ranks.

        Args:
            saved: :meth:`state` in the checkpoint that will replace every trained weight; None for a new run.

        Raises:
            UserError: the shards or the initial weights do not fit the model.
        """

    def parameter_groups(self, model: nn.Module) -> Groups:
        """Return the parameter groups for AdamW. Called before ZeRO partitions the model."""

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        """Compute the scalar losses of a micro-batch on the engine's device, in the order of ``losses``."""

    def state(self) -> dict[str, Any]:
        """Return JSON content for the checkpoint that a user of the weights needs, such as class names."""


def decay_groups(model: nn.Module, optim: OptimConfig) -> Groups:
    """Return two parameter groups, with and without weight decay (:func:`motionmae.models.motionmae.no_decay`)."""
    exempt = no_decay(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [
        {"params": [p for name, p in trained.items() if name not in exempt], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in trained.items() if name in exempt], "weight_decay": 0.0},
    ]
