"""Checks between keys, each with the last values that they allow and the first ones that they refuse."""

from typing import Any

import pytest

from motionmae.config import ClipConfig, Config, MaskConfig, ModelConfig
from motionmae.config.method import masked_count
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.errors import UserError

Settings = dict[str, Any]
FINETUNE = {"task": "finetune"}
SMALL = {"clip.size": 32}  # 2 x 2 cubes at 8 times: 4 places of a tube, 32 of a global mask
TABLES = {"model.pos_embed": "separate", "model.decoder_init": "local", "model.decoder_heads": 3}
MIXTURE = [{"path": "a"}, {"path": "b"}]
# (settings that are allowed, settings that are refused, the key that the refusal names)
CASES: list[tuple[Settings, Settings, str]] = [
    ({"clip.frames": 18}, {"clip.frames": 17}, "clip.frames=17"),
    ({"clip.size": 240}, {"clip.size": 232}, "clip.size=232"),
    ({**TABLES, "model.decoder_width": 24}, {**TABLES, "model.decoder_width": 21}, "model.decoder_init=local"),
    (TABLES | {"model.decoder_init": "xavier"}, {"model.decoder_init": "local"}, "model.decoder_init=local"),
    ({**SMALL, "mask.ratio": 0.25}, {**SMALL, "mask.ratio": 0.24}, "mask.ratio=0.24"),
    ({"mask.ratio": 0.996}, {"clip.size": 32, "clip.cube_size": 32, "mask.ratio": 0.99}, "mask.ratio=0.99"),
    ({"mask.kind": "time", "mask.ratio": 0.125}, {"mask.kind": "time", "mask.ratio": 0.12}, "masks 0 of 8"),
    (
        {**SMALL, "mask.kind": "global", "mask.ratio": 0.96},  # 1.28 cubes stay visible
        {**SMALL, "mask.kind": "global", "mask.ratio": 0.97},  # 0.96 cubes
        "masks 32 of 32",
    ),
    ({"clip.size": 224, "mask.decoder_ratio": 0.5}, {"clip.size": 240, "mask.decoder_ratio": 0.5}, "decoder_ratio=0.5"),
    ({"target.motion_granularity": 15}, {"target.motion_granularity": 16}, "motion_granularity=16"),
    (
        {"target.kind": "frame", "target.motion_granularity": 16},
        {"target.kind": "motion", "target.motion_granularity": 16},
        "motion_granularity=16",
    ),
    (
        {"target.motion_source": "flow"},
        {"target.motion_source": "flow", "target.motion_sign": "signed"},
        "target.motion_sign=signed",
    ),
    (
        {"optim.ema_decay": 0.9, "engine.zero_stage": 2},
        {"optim.ema_decay": 0.9, "engine.zero_stage": 3},
        "optim.ema_decay=0.9",
    ),
    ({"optim.ema_decay": 0.0, "engine.zero_stage": 3}, {"engine.zero_stage": 4}, "engine.zero_stage=4"),
    ({"optim.warmup_epochs": 1599.9}, {"optim.warmup_epochs": 1600}, "optim.warmup_epochs=1600"),
    ({"engine.micro_batch_size": 1024}, {"engine.micro_batch_size": 1023}, "engine.micro_batch_size=1023"),
    (
        FINETUNE | {"engine.micro_batch_size": 2},
        FINETUNE | {"engine.micro_batch_size": 1},
        "engine.micro_batch_size=1",
    ),
    (
        FINETUNE | {"engine.micro_batch_size": 1, "data.repeated_sampling": 2},
        FINETUNE | {"engine.micro_batch_size": 1, "data.repeated_sampling": 3},
        "must be even",
    ),
    (
        FINETUNE | {"engine.micro_batch_size": 1, "finetune.mixup": 0, "finetune.cutmix": 0},
        FINETUNE | {"engine.micro_batch_size": 1, "finetune.mixup": 0},
        "must be even",
    ),
    ({"engine.micro_batch_size": 1}, FINETUNE | {"engine.micro_batch_size": 1, "finetune.cutmix": 0}, "must be even"),
    (
        {"engine.reduce_dtype": "bf16", "engine.precision": "bf16"},
        {"engine.reduce_dtype": "bf16", "engine.precision": "fp16"},
        "engine.reduce_dtype=bf16",
    ),
    ({"data.crop_scale": [0.5, 1.0]}, {"data.crop_scale": [0.5, 1.01]}, "data.crop_scale=[0.5, 1.01]"),
    ({"data.crop_ratio": [0.5, 0.5]}, {"data.crop_ratio": [0.5, 0.49]}, "data.crop_ratio=[0.5, 0.49]"),
    ({"data.crop_ratio": [0.01, 5]}, {"data.crop_ratio": [0, 5]}, "data.crop_ratio=[0, 5]"),
    ({"data.shards": MIXTURE, "data.mixture_temperature": 2}, {"data.mixture_temperature": 2}, "mixture_temperature=2"),
    ({"data.shards": MIXTURE}, {"data.shards": [*MIXTURE, {"path": "a/"}]}, "a is listed twice"),
    (
        {"data.shards": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]},
        {"data.shards": [{"path": "a", "weight": 1}, {"path": "b"}]},
        "a positive weight",
    ),
    (
        {"data.shards": [{"path": "a", "passes": 1}, {"path": "b", "passes": 2}]},
        {"data.shards": [{"path": "a", "passes": 1}, {"path": "b", "weight": 2}]},
        "a positive weight",
    ),
    (
        {"data.shards": MIXTURE, "data.mixture_temperature": 2},
        {"data.shards": [{"path": "a", "passes": 1}, {"path": "b", "passes": 2}], "data.mixture_temperature": 2},
        "data.mixture_temperature=2",
    ),
    ({"data.beton": "x", "data.shards": "a"}, {"data.beton": "x", "data.shards": MIXTURE}, "data.beton=x"),
    (
        {"data.shards": [{"path": "a", "name": "x"}, {"path": "b", "name": "y"}]},
        {"data.shards": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]},
        "the name x",
    ),
    (
        FINETUNE | {"finetune.mode": "linear", "finetune.init": "r"},
        FINETUNE | {"finetune.mode": "linear"},
        "finetune.mode=linear",
    ),
    (FINETUNE | {"finetune.init": "r"}, FINETUNE | {"finetune.init": ""}, "finetune.init="),
    ({"validation.knn_train": "a", "validation.knn_test": "b"}, {"validation.knn_test": "b"}, "validation.knn_test=b"),
    ({"validation.knn_train": "a"}, FINETUNE | {"validation.knn_train": "a"}, "validation.knn_train=a"),
    (FINETUNE | {"validation.metric": "top1"}, {"validation.metric": "top1"}, "set validation.metric=loss"),
    (
        {"validation.knn_train": "a", "validation.metric": "knn"},
        {"validation.knn_train": "a", "validation.metric": "top1"},
        "set validation.metric=knn",
    ),
    ({"validation.metric": "loss"}, {"validation.metric": "knn"}, "set validation.knn_train=SHARDS too"),
    (
        FINETUNE | {"validation.patience": 1, "validation.shards": "a"},
        FINETUNE | {"validation.patience": 1},
        "early stopping needs validation.shards=SHARDS",
    ),
    (
        {"validation.patience": 1, "validation.shards": "a", "validation.metric": "loss"},
        {"validation.patience": 1, "validation.shards": "a"},
        "set validation.metric=loss",
    ),
    ({"launch.nodes": 2, "launch.min_nodes": 2}, {"launch.nodes": 2, "launch.min_nodes": 3}, "launch.min_nodes=3"),
    (
        {"launch.time": 2, "launch.signal_seconds": 119},
        {"launch.time": 2, "launch.signal_seconds": 120},
        "launch.signal_seconds=120",
    ),
    (
        {"launch.gpu_option": "gpus-per-task", "launch.ntasks_per_node": 4},
        {"launch.gpu_option": "gpus-per-task", "launch.ntasks_per_node": 3},
        "launch.gpu_option=gpus-per-task",
    ),
    (
        {"launch.master_interface": "ib0"},
        {"launch.master_interface": "ib0", "launch.master_suffix": "-ib0"},
        "launch.master_suffix=-ib0",
    ),
    ({"monitoring.port": 65520}, {"monitoring.port": 65521}, "the last port would be 65536"),
    (
        {"monitoring.tls_key": "k", "monitoring.tls_certificate": "c"},
        {"monitoring.tls_certificate": "c"},
        "monitoring.tls_key=",
    ),
    ({"monitoring.address": "::1"}, {"monitoring.address": "::"}, "monitoring.address=::"),
    ({"monitoring.address": "eth0"}, {"monitoring.address": "0.0.0.0"}, "monitoring.address=0.0.0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("allowed", "refused", "named"), CASES, ids=[case[2] for case in CASES])
def test_the_last_allowed_and_the_first_refused(allowed: Settings, refused: Settings, named: str):
    Config().updated(allowed)
    with pytest.raises(UserError) as refusal:
        Config().updated(refused)
    assert named in str(refusal.value)


def test_counts_of_a_clip_worked_by_hand():
    clip = ClipConfig(frames=12, size=96, cube_frames=3, cube_size=8)
    assert (clip.temporal_patches, clip.grid_size, clip.spatial_patches) == (4, 12, 144)
    assert (clip.cubes, clip.cube_pixels) == (576, 3 * 8 * 8 * 3)


@pytest.mark.parametrize(
    ("kind", "ratio", "positions", "masked"),
    [("tube", 0.85, 196, 166), ("random", 0.9, 196, 176), ("time", 0.9, 8, 7), ("global", 0.9, 1568, 1412)],
)
def test_videomae_rounds_the_masked_down_and_mae_st_the_visible(kind: str, ratio: float, positions: int, masked: int):
    """166.6 and 176.4 masked cubes; 7.2 times; 156.8 visible cubes."""
    assert masked_count(kind, ratio, positions) == masked
    assert MaskConfig(kind=kind, ratio=ratio).kind == kind


def test_numbers_that_follow_from_others():
    config = Config().updated({"optim.base_lr": 1e-3, "optim.global_batch_size": 512, "engine.zero_stage": 3})
    assert config.optim.peak_lr == pytest.approx(2e-3)  # 1e-3 * 512 / 256
    assert [config.engine.stage(ranks) for ranks in (1, 2, 9)] == [0, 3, 3]
    assert [accumulation_steps(config, world) for world in (1, 4, 16)] == [16, 4, 1]
    assert [steps_per_epoch(config, videos) for videos in (512, 1023, 1024)] == [1, 1, 2]
    with pytest.raises(UserError, match="holds 511 samples"):
        steps_per_epoch(config, 511)
    with pytest.raises(UserError, match=r"set engine\.micro_batch_size=16$"):
        accumulation_steps(config, 32)  # 32 x 32 = 1024, and 512 / 32 = 16
    with pytest.raises(UserError, match=r"to a multiple of 3$"):
        accumulation_steps(config, 3)
    assert config.engine.environment == {}
    deterministic = config.updated({"engine.deterministic": True}).engine.environment
    assert deterministic == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # one of the two values that CUDA's guide names
    shown = [("none", 0), ("full", 1), ("every_n", 5)]
    for kind, every in shown:
        assert ModelConfig(activation_checkpointing=kind, checkpoint_every=5).recompute_every == every


@pytest.mark.parametrize(
    ("every_steps", "every_epochs", "interval"), [(0, 1.0, 10), (0, 0.26, 3), (0, 0.24, 2), (0, 0.001, 1), (7, 1.0, 7)]
)
def test_validations_are_as_often_as_asked(every_steps: int, every_epochs: float, interval: int):
    validation = Config().updated({"validation": {"every_steps": every_steps, "every_epochs": every_epochs}}).validation
    assert validation.interval(10) == interval


@pytest.mark.parametrize(
    ("every", "memory", "steps"), [(500, 100, 100), (100, 100, 0), (101, 100, 100), ("auto", 9, 9)]
)
def test_memory_copies_are_made_only_between_checkpoints(every: int | str, memory: int, steps: int):
    checkpoint = Config().updated({"checkpoint": {"every_steps": every, "memory_every_steps": memory}}).checkpoint
    assert checkpoint.memory_steps == steps


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({}, "off"),
        (FINETUNE, "top1"),
        ({"validation.metric": "loss"}, "loss"),
        (FINETUNE | {"validation.metric": "off"}, "off"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_accuracy_in_fine_tuning_only(settings: Settings, metric: str):
    assert Config().updated(settings).validation_metric == metric


def test_targets_and_names_of_sources():
    heads = {kind: Config().updated({"target.kind": kind}).target for kind in ("frame", "motion", "both")}
    shown = {kind: (target.has_frame, target.has_motion) for kind, target in heads.items()}
    assert shown == {"frame": (True, False), "motion": (False, True), "both": (True, True)}
    flow = Config().updated({"target.kind": "frame", "target.motion_source": "flow"}).target
    assert not flow.needs_flow
    assert not heads["both"].needs_flow
    assert Config().updated({"target.motion_source": "flow"}).target.needs_flow
    paths = [{"path": "x/a/train"}, {"path": "x/b/train"}, {"path": "s3://c/d", "name": "mine"}]
    data = Config().updated({"data.shards": paths}).data
    assert data.is_mixture
    assert data.source_names == ("a/train", "b/train", "mine")
    assert data.location == "x/a/train + x/b/train + s3://c/d"
    assert not Config().updated({"data.shards": [{"path": "x/a"}]}).data.is_mixture  # a list of one folder
    typed = Config().updated({"launch.gpus_per_node": "a100:4"}).launch
    assert (typed.gpu_type, typed.gpus_per_node) == ("a100", 4)
