"""Pre-training: reconstruct the frames (the paper's space head) and the motion (time head) of masked cubes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.motionmae import build_motionmae
from motionmae.training.task import Groups, decay_groups


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
        return decay_groups(model, self._config.optim)

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        """Compute total, space, and time loss; the loss of an absent head is 0."""
        return engine(batch.clips, batch.seeds, batch.flow)

    def state(self) -> dict[str, Any]:
        return {}
