"""Configuration of a run, rules for several sections, and numbers that depend on ranks or data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from motionmae.config.data import DataConfig
from motionmae.config.downstream import FinetuneConfig, MultiviewTestConfig
from motionmae.config.launch import LaunchConfig
from motionmae.config.method import ClipConfig, MaskConfig, ModelConfig, TargetConfig
from motionmae.config.monitoring import MonitoringConfig
from motionmae.config.refusals import describe_refusal
from motionmae.config.section import MAY_CHANGE, MAY_CHANGE_RESULT, LocalPath, Section, check, only_for
from motionmae.config.training import CheckpointConfig, EngineConfig, LogConfig, OptimConfig, WatchdogConfig
from motionmae.config.trees import merge, nest
from motionmae.errors import UserError


def _folder_name(name: str) -> str:
    if name and (name[0] in "-." or not all(c.isalnum() or c in "-_." for c in name)):
        raise ValueError("use letters, digits, '-', '_' and '.', and do not start with '-' or '.'")
    return name


class Config(Section):
    """Configuration of a run. A YAML file has the same shape; ``base: other`` inherits another file's values."""

    name: Annotated[str, AfterValidator(_folder_name), MAY_CHANGE] = ""
    """Name of the run and of its folder in `output_dir`. Empty: the name of the config."""
    output_dir: Annotated[LocalPath, MAY_CHANGE] = "runs"
    """Folder of the run folders."""
    task: Literal["pretrain", "finetune"] = "pretrain"
    """finetune: a classifier on a pre-trained encoder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, data order, crops and masks. All random numbers follow from it."""
    clip: ClipConfig = ClipConfig()
    model: ModelConfig = ModelConfig()
    mask: Annotated[MaskConfig, only_for("pretrain")] = MaskConfig()
    target: Annotated[TargetConfig, only_for("pretrain")] = TargetConfig()
    finetune: Annotated[FinetuneConfig, only_for("finetune")] = FinetuneConfig()
    test: Annotated[MultiviewTestConfig, only_for("finetune"), MAY_CHANGE_RESULT] = MultiviewTestConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    engine: Annotated[EngineConfig, MAY_CHANGE] = EngineConfig()
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE] = CheckpointConfig()
    log: Annotated[LogConfig, MAY_CHANGE] = LogConfig()
    watchdog: Annotated[WatchdogConfig, MAY_CHANGE] = WatchdogConfig()
    launch: Annotated[LaunchConfig, MAY_CHANGE] = LaunchConfig()
    monitoring: Annotated[MonitoringConfig, MAY_CHANGE] = MonitoringConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.task == "pretrain" and self.target.has_motion:
            check(
                self.target.motion_granularity < self.clip.frames,
                "target.motion_granularity",
                self.target.motion_granularity,
                f"it must be less than clip.frames={self.clip.frames}",
            )
        self._check_mask()
        self._check_batch()
        check(
            not self.optim.ema_decay or self.engine.zero_stage < 3,
            "optim.ema_decay",
            self.optim.ema_decay,
            "the average needs whole weights on every rank; choose engine.zero_stage=0, 1 or 2",
        )
        return self

    def _check_mask(self) -> None:
        clip, mask = self.clip, self.mask
        counts = {"time": clip.temporal_patches, "global": clip.cubes}
        positions = counts.get(mask.kind, clip.spatial_patches)
        masked = int(mask.ratio * positions)
        check(
            0 < masked < positions,
            "mask.ratio",
            mask.ratio,
            f"with mask.kind={mask.kind} it masks {masked} of {positions}; at least one must be masked and one visible",
        )
        check(
            not mask.decoder_ratio or clip.grid_size % 2 == 0,
            "mask.decoder_ratio",
            mask.decoder_ratio,
            f"cells of 2 x 2 cubes do not fill a grid of {clip.grid_size} x {clip.grid_size}; "
            "choose clip.size and clip.cube_size with an even number of cubes per side, or set it to 0",
        )

    def _check_batch(self) -> None:
        batch, micro = self.optim.global_batch_size, self.engine.micro_batch_size
        check(batch % micro == 0, "engine.micro_batch_size", micro, f"it must divide optim.global_batch_size={batch}")
        mixes = self.task == "finetune" and self.finetune.mixes
        check(
            not mixes or micro * self.data.repeated_sampling % 2 == 0,
            "engine.micro_batch_size",
            micro,
            "mixup and cutmix mix clips in pairs; engine.micro_batch_size x data.repeated_sampling must be even",
        )

    @property
    def run_folder(self) -> Path:
        """``OUTPUT_DIR/NAME``, the folder of everything that the run writes."""
        return Path(self.output_dir) / self.name

    def updated(self, values: Mapping[str, Any]) -> "Config":
        """A checked copy with other ``values``, by ``section.key`` or by section.

        Raises:
            UserError: for an unknown key or a value that is not possible.
        """
        tree = self.model_dump()
        for key, value in values.items():
            tree = merge(tree, nest(key, value.model_dump() if isinstance(value, Section) else value))
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            raise UserError(describe_refusal(error, Config, tree)) from error


def accumulation_steps(config: Config, world: int) -> int:
    """Forward passes of a rank per step: every number of ranks trains with the same global batch.

    Raises:
        UserError: ``global_batch_size`` is not a multiple of ``micro_batch_size * world``.
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
            f"optim.global_batch_size={batch} is not divisible by engine.micro_batch_size={micro} x {world} ranks: "
            f"{remedy}"
        )
    return batch // (micro * world)


def steps_per_epoch(config: Config, videos: int) -> int:
    """Whole steps in an epoch of ``videos`` samples.

    Raises:
        UserError: there is none.
    """
    if videos < config.optim.global_batch_size:
        raise UserError(
            f"{config.data.shards or 'the data set'} holds {videos} samples, fewer than one step takes: "
            f"set optim.global_batch_size={config.optim.global_batch_size} to at most {videos}"
        )
    return videos // config.optim.global_batch_size
