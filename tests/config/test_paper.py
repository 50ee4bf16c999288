"""The committed configs held against the paper: Table 6a, the baselines, and one config a row of each ablation."""

import pytest

from motionmae.config import load_config
from motionmae.config.load import known_configs
from motionmae.planning.memory import predict_memory

SHARED = {"base_lr": 1.5e-4, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95, "warmup_epochs": 40}

# config: (frames, stride, mask kind, ratio, patch norm, flip, epochs, batch), from Table 6a and section 4
TABLE_6A = {
    "vitb_ssv2": (16, 2, "random", 0.90, False, False, 2400, 1024),
    "vitl_ssv2": (16, 2, "random", 0.90, False, False, 2400, 512),
    "vitl_ssv2_32f": (32, 2, "random", 0.90, False, False, 2400, 512),
    "vitb_k400": (16, 4, "tube", 0.90, True, True, 1600, 1024),
    "vitl_k400": (16, 4, "tube", 0.90, True, True, 1600, 512),
    "vith_k400": (16, 4, "tube", 0.90, True, True, 1600, 512),
    "vitb_ucf101": (16, 4, "random", 0.75, True, True, 3200, 128),
}


@pytest.mark.parametrize("name", TABLE_6A)
def test_pretraining_follows_table_6a(name: str) -> None:
    config = load_config(name)
    frames, stride, kind, ratio, norm, flip, epochs, batch = TABLE_6A[name]
    assert (config.clip.frames, config.clip.stride) == (frames, stride)
    assert (config.clip.size, config.clip.cube_frames, config.clip.cube_size) == (224, 2, 16)
    assert (config.mask.kind, config.mask.ratio) == (kind, ratio)
    assert (config.target.kind, config.target.normalize, config.target.loss) == ("both", norm, "mse")
    assert (config.data.flip, config.data.crop_scale) == (flip, (0.5, 1.0))
    assert (config.optim.epochs, config.optim.global_batch_size) == (epochs, batch)
    assert {key: getattr(config.optim, key) for key in SHARED} == SHARED
    assert config.model.size == f"vit_{name[3]}"
    assert config.model.decoder_depth == 4
    assert config.model.decoder == "divided"


@pytest.mark.parametrize("name", [n for n in TABLE_6A if n != "vith_k400"])
def test_global_batch_fits_the_papers_gpus(name: str) -> None:
    config = load_config(name)
    gpus = config.launch.nodes * config.launch.ntasks_per_node
    assert gpus == (8 if "ucf101" in name else 32)  # appendix A
    assert config.optim.global_batch_size % (gpus * config.engine.micro_batch_size) == 0


# config: (base lr, batch, epochs, repeated sampling, flip, drop path, test clips), from Table 6b and section 4
TABLE_6B = {
    "finetune_vitb_ssv2": (5e-4, 512, 30, 2, False, 0.1, 2),
    "finetune_vitl_ssv2": (5e-4, 256, 20, 2, False, 0.2, 2),
    "finetune_vitb_k400": (5e-4, 384, 75, 2, True, 0.1, 5),
    "finetune_vitl_k400": (2e-3, 64, 35, 2, True, 0.2, 5),
    "finetune_vitb_ucf101": (1e-3, 256, 100, 1, True, 0.1, 10),
    "finetune_vitl_ucf101": (1e-3, 256, 100, 1, True, 0.2, 10),  # not in the paper: B's column, L's drop path
}
FINETUNE_SHARED = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "warmup_epochs": 5}


@pytest.mark.parametrize("name", TABLE_6B)
def test_finetuning_follows_table_6b(name: str) -> None:
    config = load_config(name)
    base_lr, batch, epochs, repeats, flip, drop_path, clips = TABLE_6B[name]
    assert (config.task, config.model.size) == ("finetune", f"vit_{name[12]}")
    assert (config.optim.base_lr, config.optim.global_batch_size, config.optim.epochs) == (base_lr, batch, epochs)
    assert (config.data.repeated_sampling, config.data.flip, config.finetune.drop_path) == (repeats, flip, drop_path)
    assert {key: getattr(config.optim, key) for key in FINETUNE_SHARED} == FINETUNE_SHARED
    found = config.finetune
    assert (found.mode, found.layer_decay, found.label_smoothing, found.mixup, found.cutmix) == (
        "full", 0.75, 0.1, 0.8, 1.0,
    )  # fmt: skip
    assert config.data.rand_augment == "rand-m9-mstd0.5-inc1"
    assert (config.test.clips, config.test.crops) == (clips, 3)
    assert config.data.sampling == ("segments" if "ssv2" in name else "dense")
    ranks = config.launch.nodes * config.launch.ntasks_per_node
    assert batch % (ranks * config.engine.micro_batch_size) == 0
    assert load_config(config.finetune.init.removeprefix("runs/")).model == config.model  # it starts from one of ours


@pytest.mark.parametrize("dataset", ["k400", "ssv2", "ucf101"])
def test_videomae_baseline_changes_target_mask_and_final_rate_only(dataset: str) -> None:
    ours, baseline = load_config(f"vitb_{dataset}"), load_config(f"videomae_vitb_{dataset}")
    assert (baseline.target.kind, baseline.target.normalize, baseline.mask.kind) == ("frame", True, "tube")
    assert baseline.mask.ratio == ours.mask.ratio
    for same in ("clip", "model", "data", "engine"):
        assert getattr(baseline, same) == getattr(ours, same)
    # run_mae_pretraining.py of MCG-NJU/VideoMAE: args.min_lr (1e-5) * total_batch_size / 256
    assert baseline.optim == ours.optim.model_copy(update={"min_lr": 1e-5 * ours.optim.global_batch_size / 256})


def test_mae_st_baseline() -> None:
    config = load_config("maest_vitb_k400")
    assert (config.target.kind, config.mask.kind, config.mask.ratio) == ("frame", "global", 0.9)


# table: the values of its rows, in the order of the files' names
ABLATIONS = {
    "table5a": {"both", "frame", "motion"},
    "table5b": {(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)},
    "table5c": {1, 2, 3},
    "table5d": {128, 384, 512},
    "table5e": {1, 4, 8},
    "table5f": {"l1", "smooth_l1", "mse"},
    "table7": {("frame", "difference"), ("both", "flow"), ("both", "difference")},
    "table8": {"time", "random", "tube"},
    "table9": {(0.75, 4), (0.9, 4), (0.75, 2), (0.9, 2)},
    "table10": {"shared", "divided"},
}
VALUES = {
    "table5a": lambda c: c.target.kind,
    "table5b": lambda c: (c.target.frame_weight, c.target.motion_weight),
    "table5c": lambda c: c.target.motion_granularity,
    "table5d": lambda c: c.model.decoder_width,
    "table5e": lambda c: c.model.decoder_depth,
    "table5f": lambda c: c.target.loss,
    "table7": lambda c: (c.target.kind, c.target.motion_source),
    "table8": lambda c: c.mask.kind,
    "table9": lambda c: (c.mask.ratio, c.clip.stride),
    "table10": lambda c: c.model.decoder,
}


@pytest.mark.parametrize("table", ABLATIONS)
def test_every_ablation_row_is_a_config(table: str) -> None:
    names = [n for n in known_configs() if n.startswith(f"ablations/{table}_")]
    rows = [VALUES[table](load_config(name)) for name in names]
    assert set(rows) == ABLATIONS[table]
    assert len(rows) == len(ABLATIONS[table])


@pytest.mark.parametrize("name", [n for n in known_configs() if "table5" in n or "table10" in n])
def test_table_5_trains_400_epochs_of_vitb_on_ssv2(name: str) -> None:
    config = load_config(name)
    assert (config.optim.epochs, config.model.size, config.data.shards) == (400, "vit_b", "data/ssv2/train")


@pytest.mark.parametrize("name", [*TABLE_6A, *TABLE_6B])
def test_decoding_has_processes_and_enough_cores(name: str) -> None:
    """Threads would share the interpreter of the process that launches the GPU's kernels."""
    config = load_config(name)
    assert 0 < config.data.workers < config.launch.cpus_per_task


def test_vit_h_recomputes_nothing_that_fits_into_its_gpu() -> None:
    config = load_config("vith_k400")
    assert config.model.activation_checkpointing == "none"
    assert predict_memory(config, 32).peak < 0.9 * 40e9  # the smaller A100
