"""Protocol of a task. Pre-training and fine-tuning share the trainer, the engine, and the checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext
from motionmae.engine.deepspeed_engine import Engine

Groups = list[dict[str, Any]]
"""Parameter groups: ``params``, ``weight_decay`` and, for layer-wise decay, ``lr_scale``."""


class Task(Protocol):
    """A model and its losses, built from a config, with the same result on every rank."""

    losses: tuple[str, ...]
    """Names in ``metrics.jsonl`` of the losses that :meth:`forward` returns; the first, ``loss``, is minimised."""
    needs_flow: bool  # whether batches must contain optical flow
    needs_labels: bool  # whether every sample must have a class

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """Choose the initial weights for all ranks, before :meth:`build_model`; raise a UserError if none exist."""

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        """Build the model with its initial weights, on rank 0 before the other ranks.

        ``saved`` is the :meth:`state` in the checkpoint that will replace every trained weight; None for a new run.

        Raises:
            UserError: the shards or the initial weights do not fit the model.
        """

    def parameter_groups(self, model: nn.Module) -> Groups:
        """Return the parameter groups of a model that ZeRO has not partitioned yet, before Muon's are split off."""

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        """Compute the scalar losses of a micro-batch, in the order of ``losses``, on the engine's device."""

    def state(self) -> dict[str, Any]:
        """Return JSON content of the checkpoint that users of the weights need, such as class names."""
