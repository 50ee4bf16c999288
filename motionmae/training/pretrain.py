"""Pre-training: reconstruct the pixels and the motion of masked cubes (the paper's space head and time head)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from motionmae.checkpointing.load_weights import resolve_checkpoint
from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.motionmae import build_motionmae, no_decay
from motionmae.training.initial_weights import InitialWeights, load_initial_weights
from motionmae.training.task import Groups


class Pretraining:
    """Pre-training :class:`~motionmae.training.task.Task` (section 3 of the paper)."""

    losses: tuple[str, ...] = ("loss", "loss_space", "loss_time")
    needs_labels = False

    def __init__(self, config: Config) -> None:
        self._config, self._init = config, config.pretrain.init
        self.initial_weights: InitialWeights | None = None  # None for random weights, and in a resumed attempt
        self._state: dict[str, Any] = {}
        self.needs_flow = config.target.needs_flow

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """Resolve ``pretrain.init`` on rank 0 only: a run in progress may save between the reads of two ranks.

        A resume loads the run's own checkpoint and does not read ``pretrain.init``.
        """
        if saved is not None:
            self._state = dict(saved)
        elif self._init != "scratch":
            self._init = str(run_on_rank_zero(rank, lambda: resolve_checkpoint(self._init)))

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        model = build_motionmae(self._config)
        if saved is None and self._init != "scratch":
            self.initial_weights = load_initial_weights(model, self._init, self._config)
            self._state = {"initial_weights": self.initial_weights.as_row()}
        return model

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
        """Return the record of the initial weights, if the run did not begin with random ones."""
        return self._state
