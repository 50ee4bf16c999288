"""Pre-training: reconstruct the pixels and the motion of masked cubes (the paper's space head and time head)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.motionmae import build_motionmae, no_decay
from motionmae.training.task import Groups


class Pretraining:
    """Pre-training :class:`~motionmae.training.task.Task` (section 3 of the paper)."""

    losses: tuple[str, ...] = ("loss", "loss_space", "loss_time")
    needs_labels = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self.needs_flow = config.target.needs_flow

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """Do nothing: the initial weights follow from the seed."""

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        return build_motionmae(self._config)

    def parameter_groups(self, model: nn.Module) -> Groups:
        """Return two parameter groups, with and without weight decay."""
        exempt = no_decay(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for name, p in trained.items() if name not in exempt]
        return [
            {"params": decayed, "weight_decay": self._config.optim.weight_decay},
            {"params": [p for name, p in trained.items() if name in exempt], "weight_decay": 0.0},
        ]

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        """Compute the total loss and the losses of space head and time head; the loss of an absent head is 0."""
        return engine(batch.clips, batch.seeds, batch.flow)

    def state(self) -> dict[str, Any]:
        return {}
