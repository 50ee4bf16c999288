"""What a run must remember besides tensors, and which of its settings a resumed run may change."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from motionmae.config import Config, flat
from motionmae.data.rng import keyed_bits
from motionmae.errors import UserError

MAY_CHANGE = (
    "name",
    "output_dir",
    "engine.",
    "checkpoint.",
    "log.",
    "watchdog.",
    "launch.",
    "monitoring.",
    "model.activation_checkpointing",
    "model.checkpoint_every",
    "data.shards",  # the loader itself compares what the shards hold
    "data.beton",  # the same clips as from the shards, but for the decoder's rounding
    "data.cache",  # and data.cache_gb
    "data.remote_",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.max_corrupt_samples",
    "test.",  # of the test
    "finetune.init",  # the run has its weights since it began
)
"""Settings that a resumed run may have otherwise, by their beginning: they change no sample and no schedule."""


@dataclass
class TrainState:
    """How far a run is. Free of world size: every count is over all ranks."""

    step: int = 0
    """Steps taken, those skipped included; sets the learning rate."""
    data_step: int = 0
    """Steps' worth of samples consumed. Apart from ``step``, so that a run can go back and take other samples."""
    skipped: int = 0
    """Steps skipped because loss or gradient was not finite."""
    recently_skipped: list[int] = field(default_factory=list)
    """The last of these steps, for the budget of :mod:`motionmae.training.nonfinite`."""
    rollbacks: list[int] = field(default_factory=list)
    """``data_step`` of each return to an earlier checkpoint because of them."""
    corrupt: dict[str, str] = field(default_factory=dict)
    """Samples that some rank could not read, in this attempt or an earlier one: id -> reason."""


def config_as_json(config: Config) -> dict[str, Any]:
    """The config as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(asdict(config)))


def differing_settings(saved: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings beyond MAY_CHANGE in which ``config`` differs from a saved one: by key, the saved value and its own."""
    before = {**flat(config_as_json(Config())), **flat(saved)}
    now = flat(config_as_json(config))
    return {k: (before[k], value) for k, value in now.items() if before[k] != value and not k.startswith(MAY_CHANGE)}


def check_same_run(saved: dict[str, Any], config: Config) -> None:
    """Refuse to go on with a checkpoint of another run.

    Args:
        saved: the config in the checkpoint, as :func:`config_as_json` gave it.
        config: that of the run that wants to resume. A key that the checkpoint does not know had its default.

    Raises:
        UserError: if they differ in more than MAY_CHANGE; it names the keys and both values.
    """
    if differing := differing_settings(saved, config):
        changes = ", ".join(f"{key}={now} (was {then})" for key, (then, now) in differing.items())
        raise UserError(
            f"{config.output_dir}/{config.name} was trained with other settings, so it cannot be resumed with {changes}: "
            "put the old values back or start another run with name=..."
        )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make torch's and numpy's generators a function of (seed, step, rank): a checkpoint need hold no state of theirs.

    Drop path draws from torch's, timm's mixup from numpy's.
    """
    bits = keyed_bits("step", seed, step, rank)
    torch.manual_seed(bits % 2**63)
    np.random.seed(bits % 2**32)
