"""Configuration of a run, its checks across sections, and numbers that depend on ranks or data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from motionmae.config.cluster import LaunchConfig, MonitoringConfig
from motionmae.config.data import DataConfig
from motionmae.config.downstream import FinetuneConfig, MultiviewTestConfig
from motionmae.config.method import ClipConfig, MaskConfig, ModelConfig, TargetConfig, masked_count
from motionmae.config.pretrain import PretrainConfig
from motionmae.config.refusals import describe_refusal
from motionmae.config.section import MAY_CHANGE, MAY_CHANGE_RESULT, LocalPath, Section, marks_of, only_for, refusal
from motionmae.config.text_types import run_name
from motionmae.config.training import CheckpointConfig, EngineConfig, LogConfig, OptimConfig, WatchdogConfig
from motionmae.config.trees import flat, merge, nest
from motionmae.config.validation import ValidationConfig
from motionmae.errors import UserError


class Config(Section):
    """Configuration of a run, and shape of its YAML file. There ``base: other`` inherits the values of another file."""

    name: Annotated[str, AfterValidator(run_name), MAY_CHANGE] = ""
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
    pretrain: Annotated[PretrainConfig, only_for("pretrain")] = PretrainConfig()
    finetune: Annotated[FinetuneConfig, only_for("finetune")] = FinetuneConfig()
    test: Annotated[MultiviewTestConfig, only_for("finetune"), MAY_CHANGE_RESULT] = MultiviewTestConfig()
    data: DataConfig = DataConfig()
    validation: Annotated[ValidationConfig, MAY_CHANGE] = ValidationConfig()
    optim: OptimConfig = OptimConfig()
    engine: Annotated[EngineConfig, MAY_CHANGE] = EngineConfig()
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE] = CheckpointConfig()
    log: Annotated[LogConfig, MAY_CHANGE] = LogConfig()
    watchdog: Annotated[WatchdogConfig, MAY_CHANGE] = WatchdogConfig()
    launch: Annotated[LaunchConfig, MAY_CHANGE] = LaunchConfig()
    monitoring: Annotated[MonitoringConfig, MAY_CHANGE] = MonitoringConfig()

    def check(self) -> None:
        granularity, frames = self.target.motion_granularity, self.clip.frames
        if self.task == "pretrain" and self.target.has_motion and granularity >= frames:
            raise refusal("target.motion_granularity", granularity, f"it must be less than clip.frames={frames}")
        if self.optim.ema_decay and self.engine.zero_stage == 3:
            allowed = "the average needs whole weights on every rank; choose engine.zero_stage=0, 1 or 2"
            raise refusal("optim.ema_decay", self.optim.ema_decay, allowed)
        self._check_mask()
        self._check_batch()
        self._check_validation()

    def _check_validation(self) -> None:
        metric, validation = self.validation_metric, self.validation
        wanted = "knn" if validation.knn_train else "loss"
        if self.task == "finetune" and (metric == "knn" or validation.knn_train):
            raise refusal("validation.knn_train", validation.knn_train, "k-NN is for pre-training; leave it empty")
        if self.task == "pretrain" and metric == "top1":
            raise refusal("validation.metric", metric, f"pre-training has no classes; set validation.metric={wanted}")
        if metric == "knn" and not validation.knn_train:
            raise refusal("validation.metric", metric, "set validation.knn_train=SHARDS too")
        if validation.patience and metric == "off":
            allowed = f"early stopping needs a figure; set validation.metric={wanted}"
            raise refusal("validation.patience", validation.patience, allowed)
        if validation.patience and not validation.shards:
            raise refusal("validation.patience", validation.patience, "early stopping needs validation.shards=SHARDS")

    @property
    def validation_metric(self) -> str:
        """Figure that decides which checkpoint is the best: top1, loss, knn or off."""
        automatic = "top1" if self.task == "finetune" else "off"
        return automatic if self.validation.metric == "auto" else self.validation.metric

    def _check_mask(self) -> None:
        clip, mask = self.clip, self.mask
        counts = {"time": clip.temporal_patches, "global": clip.cubes}
        positions = counts.get(mask.kind, clip.spatial_patches)
        masked = masked_count(mask.kind, mask.ratio, positions)
        if not 0 < masked < positions:
            counted = f"with mask.kind={mask.kind} it masks {masked} of {positions}"
            raise refusal("mask.ratio", mask.ratio, f"{counted}; at least one must be masked and one visible")
        if mask.decoder_ratio and clip.grid_size % 2:
            cells = f"cells of 2 x 2 cubes do not fill a grid of {clip.grid_size} x {clip.grid_size}"
            remedy = "choose clip.size and clip.cube_size with an even number of cubes per side, or set it to 0"
            raise refusal("mask.decoder_ratio", mask.decoder_ratio, f"{cells}; {remedy}")

    def _check_batch(self) -> None:
        batch, micro = self.optim.global_batch_size, self.engine.micro_batch_size
        if batch % micro:
            raise refusal("engine.micro_batch_size", micro, f"it must divide optim.global_batch_size={batch}")
        mixes = self.task == "finetune" and self.finetune.mixes
        if mixes and micro * self.data.repeated_sampling % 2:
            pairs = "mixup and cutmix mix clips in pairs"
            allowed = f"{pairs}; engine.micro_batch_size x data.repeated_sampling must be even"
            raise refusal("engine.micro_batch_size", micro, allowed)

    @property
    def run_folder(self) -> Path:
        """``OUTPUT_DIR/NAME``, the folder of everything that the run writes."""
        return Path(self.output_dir) / self.name

    def updated(self, values: Mapping[str, Any]) -> "Config":
        """Return a copy with other ``values``, by ``section.key`` or by section, or raise UserError."""
        tree = self.model_dump()
        for key, value in values.items():
            tree = merge(tree, nest(key, value.model_dump() if isinstance(value, Section) else value))
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            raise UserError(describe_refusal(error, Config, tree)) from error


_NOT_RELATIVE: dict[str, Callable[[str], bool]] = {
    "local": lambda value: False,
    "node": lambda value: value.startswith("$"),  # only the node knows a variable such as $TMPDIR
    "url": lambda value: "://" in value,
    "weights": lambda value: value == "scratch",
}
"""Test for values that are not relative paths, by the kind of path (:mod:`motionmae.config.section`)."""


def absolute_paths(config: Config) -> Config:
    """Return ``config`` with absolute paths, for a job that starts in a different folder."""
    values = flat(config.model_dump())
    kinds = {key: marks["path"] for key, marks in marks_of(Config).items() if "path" in marks}
    return config.updated({key: _absolute(values[key], kind) for key, kind in kinds.items() if values[key]})


def _absolute(path: Any, kind: str) -> Any:
    if not isinstance(path, str):  # the sources of a mixture
        return [{**source, "path": _absolute(source["path"], kind)} for source in path]
    return path if _NOT_RELATIVE[kind](path) else str(Path(path).expanduser().resolve())


def accumulation_steps(config: Config, world: int) -> int:
    """Return the forward passes of a rank per step, so that every number of ranks trains with the same global batch.

    Raises UserError if ``global_batch_size`` is not a multiple of ``micro_batch_size * world``.
    """
    batch, micro = config.optim.global_batch_size, config.engine.micro_batch_size
    if batch % (micro * world):
        fitting = [m for m in range(1, micro + 1) if batch % (m * world) == 0]
        smaller = f"set engine.micro_batch_size={fitting[-1]}" if fitting else ""
        remedy = smaller or f"set optim.global_batch_size to a multiple of {world}"
        division = f"engine.micro_batch_size={micro} x {world} ranks"
        raise UserError(f"optim.global_batch_size={batch} is not divisible by {division}: {remedy}")
    return batch // (micro * world)


def steps_per_epoch(config: Config, videos: int, ranks: int = 1) -> int:
    """Return the number of whole steps in an epoch of ``videos`` samples. Raises UserError if there is none."""
    batch = config.optim.global_batch_size
    if videos < batch:
        raise UserError(
            f"{config.data.location or 'the data set'} holds {videos} samples, fewer than one step takes "
            f"(optim.global_batch_size={batch}): {_smaller_batch(config, videos, ranks)}"
        )
    return videos // batch


def _smaller_batch(config: Config, videos: int, ranks: int) -> str:
    """Return the settings with which a data set smaller than the batch gives steps: at least four where it can."""
    mixes = config.task == "finetune" and config.finetune.mixes and config.data.repeated_sampling % 2
    least = 2 if mixes else 1  # mixup mixes clips in pairs
    if videos < least * ranks:
        fewer = f"start at most {videos // least} processes, or " if videos >= least else ""
        return f"{fewer}use more videos, because every one of the {ranks} processes needs {least} a step"
    share = max(least, videos // 4 // ranks)
    share = 1 << share.bit_length() - 1  # a power of two
    micro = min(share, 1 << config.engine.micro_batch_size.bit_length() - 1)
    steps = videos // (share * ranks)
    many = "step" if steps == 1 else "steps"
    return (
        f"set optim.global_batch_size={share * ranks} engine.micro_batch_size={micro}, which gives {steps} {many} an "
        "epoch, or let `motionmae init VIDEOS` write a config that fits the videos and this machine"
    )
