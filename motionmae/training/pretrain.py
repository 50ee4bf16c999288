"""Pre-training: rebuild what is hidden, frames by the space head and motion by the time head."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import Preemption
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Sink
from motionmae.training.setup import train_run
from motionmae.training.task import Groups, decay_groups


class Pretraining:
    """The :class:`~motionmae.training.task.Task` of the paper's section 3."""

    losses: tuple[str, ...] = ("loss", "loss_space", "loss_time")
    needs_labels = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self.needs_flow = config.target.has_motion and config.target.motion_source == "flow"

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """See :meth:`Task.choose_weights`: there are none to choose from."""

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        """See :meth:`Task.build_model`; the weights follow from the seed."""
        return build_motionmae(self._config)

    def parameter_groups(self, model: nn.Module) -> Groups:
        """See :meth:`Task.parameter_groups`."""
        return decay_groups(model, self._config)

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        """See :meth:`Task.forward`; a head that is not trained has loss 0."""
        return engine(batch.clips, batch.seeds, batch.flow)

    def state(self) -> dict[str, Any]:
        """See :meth:`Task.state`: the config says all."""
        return {}


def pretrain(config: Config, *, preemption: Preemption | None = None, sinks: Iterable[Sink] = ()) -> EndReason:
    """Pre-train by ``config``: one attempt of its run, see :func:`motionmae.training.setup.train_run`."""
    return train_run(config, Pretraining(config), preemption=preemption, sinks=sinks)
