"""Choices of `motionmae init`: frames, stride, size, batch and epochs for the videos and the machine.

The values start from a preset, and each choice has a reason that stands beside it in the config.
"""

from dataclasses import dataclass

from data_tools.init.survey import Machine, Survey
from motionmae.config import Config, load_config
from motionmae.planning.gpus import USABLE
from motionmae.planning.memory import largest_micro_batch

_CLIP_SECONDS = 2.1  # of 16 frames at stride 4 and 30 frames a second, the paper's clip on Kinetics
_LONG_SECONDS = 60  # longer videos are cut into samples
_CPU_STEPS, _GPU_STEPS = 6_000, 40_000
_FINETUNE_STEPS = 1_500
_FEW_STEPS_AN_EPOCH = 8
_NAME = "the run folder is runs/NAME"
_SHARDS = "folder of the training shards"
_WARMUP = "the learning rate rises so long"
_LEFT_RIGHT = ("left", "right", "clockwise")
_SMALL_SIDE = 168  # pixels; below it, 224 would be an enlargement of a quarter

Value = int | float | str | bool


@dataclass(frozen=True)
class Choice:
    """Value of a config key, and why."""

    key: str  # section.key
    value: Value
    why: str


@dataclass(frozen=True)
class Recipe:
    """Config file: its base and what differs from it."""

    base: str
    choices: tuple[Choice, ...]

    @property
    def overrides(self) -> dict[str, Value]:
        return {choice.key: choice.value for choice in self.choices}


def choose_pretraining(survey: Survey, machine: Machine, name: str, shards: str, held_out: str) -> Recipe:
    """Return the recipe of a pre-training on ``shards``."""
    base = "base/ucf101" if machine.gpus else "base/tiny"
    start = load_config(base)
    model = _choose_model(survey, machine)
    clip = _choose_clip(survey, start, bool(machine.gpus))
    batch, micro = _choose_batch(survey, machine, start, [*model, *clip])
    data = [
        Choice("data.shards", shards, _SHARDS),
        _choose_flip(survey, bool(machine.gpus)),
        *_choose_decoding(machine),
    ]
    length = _choose_length(survey, batch, _GPU_STEPS if machine.gpus else _CPU_STEPS, machine)
    logs = _choose_logs(survey, batch, int(length[0].value))
    launch = _choose_launch(machine)
    choices = [
        Choice("name", name, _NAME),
        *model,
        *clip,
        *data,
        *_batch_choices(survey, batch, micro, machine),
        *length,
    ]
    choices += [*logs, *launch, *_choose_validation(survey, held_out, int(length[0].value), clips=256)]
    return Recipe(base, tuple(choices))


def choose_finetuning(
    survey: Survey, machine: Machine, name: str, shards: str, held_out: str, pretrained: Recipe
) -> Recipe:
    """Return the recipe of a fine-tuning of the pre-trained encoder on the classes of the folder."""
    base = "base/finetune" if machine.gpus else "base/finetune_tiny"
    same = [choice for choice in pretrained.choices if choice.key.startswith(("clip.", "model.", "launch."))]
    of = pretrained.overrides
    batch, micro = int(of["optim.global_batch_size"]), int(of["engine.micro_batch_size"])
    length = _choose_length(survey, batch, _FINETUNE_STEPS * (4 if machine.gpus else 1), machine, fewest=20, most=200)
    warm = Choice("optim.warmup_epochs", max(1, int(length[0].value) // 20), _WARMUP)
    rates = [Choice("optim.base_lr", 1e-3, "Table 6b, UCF101")] if machine.gpus else []
    choices = [
        Choice("name", name, _NAME),
        Choice("finetune.init", f"runs/{of['name']}", "the run of the pre-training"),
        *same,
        Choice("data.shards", shards, _SHARDS),
        Choice("data.sampling", "segments", "a clip spans its whole video, as a test of short actions needs"),
        _choose_flip(survey, default=True),
        *_choose_decoding(machine),
        Choice("optim.global_batch_size", batch, "as in the pre-training"),
        Choice("engine.micro_batch_size", micro, "as in the pre-training"),
        length[0],
        warm,
        *rates,
        *_choose_logs(survey, batch, int(length[0].value)),
    ]
    if held_out:
        choices.append(Choice("test.shards", held_out, "`motionmae test` measures the accuracy here"))
        choices += _choose_validation(survey, held_out, int(length[0].value))
    return Recipe(base, tuple(choices))


def shard_options(survey: Survey, machine: Machine) -> list[str]:
    """Return options of make_shards that fit the videos."""
    options = []
    if is_long(survey) and not survey.class_names:
        options += ["--segment-seconds", "10"]
    if not machine.gpus:
        options += ["--short-side", "96"]
    return options


def is_long(survey: Survey) -> bool:
    return survey.median_frames / survey.fps > _LONG_SECONDS


def _choose_model(survey: Survey, machine: Machine) -> list[Choice]:
    if not machine.gpus:
        why = "only so can transformers load an export; learnable trained better (docs/own_videos.md)"
        return [Choice("model.pos_embed", "sinusoidal", why)]
    videos = len(survey.train.videos)
    if videos >= 50_000 and machine.gigabytes >= 20:
        return [Choice("model.size", "vit_b", f"{videos} videos can train it")]
    return [Choice("model.size", "vit_s", f"a quarter of vit_b's parameters: {videos} videos are few for more")]


def _choose_clip(survey: Survey, start: Config, on_gpu: bool) -> list[Choice]:
    frames = start.clip.frames
    if on_gpu and survey.short_frames < frames:
        frames = 8
    reachable = max(1, (survey.short_frames - 1) // (frames - 1))
    usual = max(1, round(_CLIP_SECONDS * survey.fps / frames))
    stride = min(usual, reachable)
    span = (frames - 1) * stride + 1
    seconds = span / survey.fps
    if stride < usual:
        why = f"{frames} frames span {span}, which three quarters of the videos have"
    else:
        why = f"{frames} frames span {seconds:.1f} s, about as the paper's clips; a usual video has "
        why += f"{survey.median_frames} frames"
    if survey.short_frames < frames:
        why = f"the videos have as few as {survey.short_frames} frames, and shorter ones repeat their last frame"
    fewer = Choice("clip.frames", frames, f"three quarters of the videos have {survey.short_frames} frames or more")
    choices = [fewer] if frames != start.clip.frames else []
    choices.append(Choice("clip.stride", stride, why))
    if on_gpu:
        small = survey.short_side < _SMALL_SIDE
        size = 112 if small else 224
        given = f"the videos have {survey.long_side} x {survey.short_side} pixels"
        choices.append(Choice("clip.size", size, f"{given}: 224 would only enlarge them" if small else given))
    return choices


def _choose_batch(survey: Survey, machine: Machine, start: Config, choices: list[Choice]) -> tuple[int, int]:
    """Return batch and micro-batch: powers of two, at least eight steps an epoch where the videos allow it."""
    ranks = max(1, machine.gpus)
    most = start.optim.global_batch_size if len(survey.train.videos) < 50_000 else 1024
    fitting = min(most, max(2 * ranks, len(survey.train.videos) // _FEW_STEPS_AN_EPOCH))
    share = 1 << max(0, (fitting // ranks).bit_length() - 1)
    share = min(share, 1 << max(0, (len(survey.train.videos) // ranks).bit_length() - 1))
    if not machine.gpus:
        return share, min(share, start.engine.micro_batch_size)
    shape = {choice.key: choice.value for choice in choices}
    trial = start.updated({**shape, "optim.global_batch_size": share * ranks, "engine.micro_batch_size": 1})
    largest = largest_micro_batch(trial, ranks, USABLE * machine.gigabytes * 1e9)
    return share * ranks, min(share, 1 << max(0, max(1, largest).bit_length() - 1))


def _batch_choices(survey: Survey, batch: int, micro: int, machine: Machine) -> list[Choice]:
    videos, steps = len(survey.train.videos), len(survey.train.videos) // batch
    where = f"fits into {machine.gigabytes:.0f} GB" if machine.gpus else "a forward pass of one process"
    return [
        Choice("optim.global_batch_size", batch, f"{steps} steps in a pass over {videos} videos"),
        Choice("engine.micro_batch_size", micro, where),
    ]


def _choose_length(
    survey: Survey, batch: int, steps: int, machine: Machine, fewest: int = 50, most: int = 3200
) -> list[Choice]:
    """Return epochs and warm-up for about ``steps`` steps."""
    steps_per_epoch = max(1, len(survey.train.videos) // batch)
    epochs = min(most, max(fewest, round(steps / steps_per_epoch)))
    total = epochs * steps_per_epoch
    why = f"{total} steps; {'more may help' if fewest == 50 else 'few videos need many passes'} (docs/own_videos.md)"
    return [Choice("optim.epochs", epochs, why), Choice("optim.warmup_epochs", max(1, round(epochs / 25)), _WARMUP)]


def _choose_logs(survey: Survey, batch: int, epochs: int) -> list[Choice]:
    steps = max(1, len(survey.train.videos) // batch) * epochs
    return [
        Choice("checkpoint.every_steps", max(20, steps // 20), "twenty times in the run"),
        Choice("log.every_steps", max(1, min(20, steps // 100)), "a printed line and a point of the curves"),
    ]


def _choose_flip(survey: Survey, default: bool) -> Choice:
    sided = [name for name in survey.class_names if any(word in name.lower() for word in _LEFT_RIGHT)]
    if sided:
        return Choice("data.flip", False, f"a mirrored {sided[0]} would be another class")
    if not default:
        return Choice("data.flip", False, "a small model learns sooner from what it sees often")
    return Choice("data.flip", True, "no class names a side" if survey.class_names else "a mirrored video is as good")


def _choose_decoding(machine: Machine) -> list[Choice]:
    if not machine.gpus:
        return []
    workers = max(1, min(10, machine.cores // machine.gpus - 2))
    return [Choice("data.workers", workers, f"of {machine.cores} cores for {machine.gpus} GPUs")]


def _choose_launch(machine: Machine) -> list[Choice]:
    if not machine.gpus:
        return [Choice("launch.ntasks_per_node", 1, "one process, which uses all cores")]
    return [
        Choice("launch.ntasks_per_node", machine.gpus, "one process a GPU"),
        Choice("launch.gpus_per_node", machine.gpus, "all GPUs of this machine"),
        Choice("launch.cpus_per_task", max(1, machine.cores // machine.gpus), "its share of the cores"),
    ]


def _choose_validation(survey: Survey, held_out: str, epochs: int, clips: int = 0) -> list[Choice]:
    if not held_out:
        return []
    choices = [
        Choice("validation.shards", held_out, "held-out videos: what is learned beyond the training videos"),
        Choice("validation.every_epochs", max(1, epochs // 20), "twenty times in the run"),
    ]
    if clips:
        count = min(clips, 2 * len(survey.held_out.videos)) if survey.held_out else clips
        why = "two of each held-out video" if count < clips else "enough for a steady figure"
        choices.append(Choice("validation.heldout_clips", count, why))
    return choices
