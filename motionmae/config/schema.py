"""The schema of a run: one dataclass a component, one docstring a field, every impossible value refused.

A check names the key, the value it got and what is allowed. Checks that need only one component live in its
``__post_init__``, in the file of its section; those that join two live in :class:`Config`. What depends on the number
of ranks is checked where the ranks are known (:func:`accumulation_steps`).
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass

from motionmae.config.checks import check, one_of
from motionmae.config.data import DataConfig
from motionmae.config.downstream import FinetuneConfig, MultiviewTestConfig
from motionmae.config.launch import LaunchConfig
from motionmae.config.method import ClipConfig, MaskConfig, ModelConfig, TargetConfig
from motionmae.config.monitoring import MonitoringConfig
from motionmae.config.training import CheckpointConfig, EngineConfig, LogConfig, OptimConfig, WatchdogConfig
from motionmae.errors import UserError


@dataclass(frozen=True)
class Config:
    """A whole run. Its YAML has the same shape; ``base: other`` takes over another file's values first."""

    name: str = ""
    """Name of the run and of its folder below `output_dir`; by default the config's name."""
    output_dir: str = "runs"
    """Folder that holds the run folders."""
    task: str = "pretrain"
    """pretrain, or finetune: a classifier on a pre-trained encoder."""
    seed: int = 0
    """Seed of initial weights, order, crops and masks: everything random follows from it."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    test: MultiviewTestConfig = field(default_factory=MultiviewTestConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)

    def __post_init__(self) -> None:
        check(
            self.name == "" or (all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] not in "-."),
            "name",
            self.name,
            "use letters, digits, '-', '_' and '.', and start with none of '-' and '.'",
        )
        one_of("task", self.task, ("pretrain", "finetune"))
        check(0 <= self.seed < 2**63, "seed", self.seed, "it must be at least 0 and less than 2^63")
        _refuse_infinite(self)
        no_motion = self.task == "finetune" or not self.target.has_motion
        check(
            no_motion or self.target.motion_granularity < self.clip.frames,
            "target.motion_granularity",
            self.target.motion_granularity,
            f"it must be less than clip.frames={self.clip.frames}",
        )
        counts = {"time": self.clip.temporal_patches, "global": self.clip.cubes}
        drawn_from = counts.get(self.mask.kind, self.clip.spatial_patches)
        masked = int(self.mask.ratio * drawn_from)
        check(
            0 < masked < drawn_from,
            "mask.ratio",
            self.mask.ratio,
            f"with mask.kind={self.mask.kind} it masks {masked} of {drawn_from}; "
            "at least one must be masked and one visible",
        )
        check(
            not self.mask.decoder_ratio or self.clip.grid_size % 2 == 0,
            "mask.decoder_ratio",
            self.mask.decoder_ratio,
            f"cells of 2 x 2 cubes do not fill {self.clip.grid_size} x {self.clip.grid_size}; "
            "choose clip.size and clip.cube_size so that an even number of cubes fits a side, or set it to 0",
        )
        check(
            self.optim.global_batch_size % self.engine.micro_batch_size == 0,
            "engine.micro_batch_size",
            self.engine.micro_batch_size,
            f"it must divide optim.global_batch_size={self.optim.global_batch_size}",
        )
        check(
            self.task == "pretrain"
            or not self.finetune.mixes
            or self.engine.micro_batch_size * self.data.repeated_sampling % 2 == 0,
            "engine.micro_batch_size",
            self.engine.micro_batch_size,
            "mixup and cutmix mix clips in pairs, so engine.micro_batch_size x data.repeated_sampling must be even",
        )
        check(
            not self.optim.ema_decay or self.engine.zero_stage < 3,
            "optim.ema_decay",
            self.optim.ema_decay,
            "the average needs whole weights on every rank, so choose engine.zero_stage=0, 1 or 2",
        )


def _refuse_infinite(config: Config) -> None:
    for section in fields(config):
        values = getattr(config, section.name)
        for key in fields(values) if is_dataclass(values) else ():
            value = getattr(values, key.name)
            for number in value if isinstance(value, tuple) else (value,):
                finite = not isinstance(number, float) or math.isfinite(number)
                check(finite, f"{section.name}.{key.name}", value, "it must be a finite number")


def accumulation_steps(config: Config, world: int) -> int:
    """Forward passes of a rank in one step, so that ``batch`` stays the same for every number of ranks.

    Raises:
        UserError: if ``batch`` is not a multiple of ``micro_batch_size * world``.
    """
    batch, micro = config.optim.global_batch_size, config.engine.micro_batch_size
    if batch % (micro * world):
        fitting = [m for m in range(1, micro + 1) if batch % (m * world) == 0]
        remedy = (
            f"set engine.micro_batch_size={fitting[-1]}"
            if fitting
            else f"set optim.global_batch_size to a multiple of {world}"
        )
        raise UserError(
            f"optim.global_batch_size={batch} is not divisible by engine.micro_batch_size={micro} x {world} ranks: {remedy}"
        )
    return batch // (micro * world)


def steps_per_epoch(config: Config, videos: int) -> int:
    """Whole steps that an epoch of ``videos`` samples has.

    Raises:
        UserError: if there is none.
    """
    if videos < config.optim.global_batch_size:
        raise UserError(
            f"{config.data.shards or 'the data set'} holds {videos} samples, fewer than one step takes: "
            f"set optim.global_batch_size={config.optim.global_batch_size} to at most {videos}"
        )
    return videos // config.optim.global_batch_size
