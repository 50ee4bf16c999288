"""Names of other programs, and which key is meant by an unknown one."""

from pathlib import Path

import pytest

from motionmae.config import Config, load_config
from motionmae.errors import UserError

NAMES = {
    "optim.base_lr": "lr learning_rate blr",
    "optim.global_batch_size": "batch batch_size bs train_batch_size",
    "engine.micro_batch_size": "per_gpu_batch micro_batch device_batch_size per_device_train_batch_size",
    "optim.epochs": "epochs epoch num_epochs max_epochs num_train_epochs",
    "optim.warmup_epochs": "warmup warmup_steps",
    "optim.weight_decay": "wd weight_decay",
    "data.workers": "num_workers workers dataloader_workers",
    "launch.gpus_per_node or launch.ntasks_per_node": "gpus num_gpus devices",
    "launch.nodes": "nodes num_nodes",
    "clip.frames": "frames num_frames clip_len",
    "clip.size": "size img_size input_size image_size crop_size resolution",
    "clip.stride": "sampling_rate frame_interval stride",
    "clip.cube_size or clip.cube_frames": "patch patch_size tubelet_size",
    "mask.ratio": "mask_ratio masking_ratio",
    "data.shards": "data_path data_dir path root dataset shards",
    "output_dir": "out out_dir runs log_dir save_dir",
    "name": "run_name exp_name experiment",
    "engine.micro_batch_size or optim.global_batch_size": "accum_iter gradient_accumulation_steps "
    "accumulate_grad_batches",
    "engine.precision": "precision dtype fp16 bf16 amp",
    "engine.zero_stage": "zero stage zero_stage",
    "checkpoint.every_steps": "save_every save_freq save_steps",
    "log.every_steps": "log_every logging_steps print_freq",
    "optim.clip_grad": "grad_clip max_grad_norm clip_grad",
    "finetune.init or pretrain.init": "init pretrained checkpoint_path resume weights",
}
GIVEN = [(given, meant) for meant, names in NAMES.items() for given in names.split()]


def refused(key: str) -> str:
    with pytest.raises(UserError) as found:
        load_config("vitb_k400", [f"{key}=1"])
    return str(found.value)


@pytest.mark.parametrize(("given", "meant"), GIVEN, ids=[given for given, _ in GIVEN])
def test_the_names_of_other_programs_lead_to_ours(given: str, meant: str) -> None:
    assert refused(given) == f"unknown key {given} (from {given}=1): did you mean {meant}?"
    assert f"did you mean {meant}?" in refused(given.replace("_", "-").upper())


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("clip.cube", "clip.cube_frames"),  # the first with this word
        ("optim.keep_last", "checkpoint.keep_last"),  # the same name elsewhere
        ("model.widht", "model.width"),
        ("model.decoder_deth", "model.decoder_depth"),
        ("maks", "mask"),
    ],
)
def test_the_nearest_key_is_proposed(key: str, meant: str) -> None:
    text = refused(key)
    assert text.startswith(f"unknown key {key} (from {key}=1): did you mean {meant}")


def test_an_unknown_key_comes_before_an_impossible_value() -> None:
    with pytest.raises(UserError, match=r"^unknown key zzz"):
        load_config("vitb_k400", ["mask.ratio=2", "zzz=1"])


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("seed=x", "it must be a whole number"),
        ("optim.eps=x", "it must be a number"),
        ("data.flip=x", "it must be true or false"),
        ("name=[a]", "it must be a string"),
        ("data.crop_scale=3", "it must be a list of two numbers"),
        ("optim.eps=0", "it must be positive"),
        ("optim.beta1=1", "it must be at least 0 and less than 1"),
        ("data.random_erasing=2", "it must be at least 0 and at most 1"),
        ("watchdog.step_factor=0.5", "it must be at least 1"),
        ("optim.eps=.nan", "it must be a number"),
        ("clip=[1]", "it is a section: write clip.frames=..."),
        ("log.wandb=maybe", "choose one of off, offline, online"),
    ],
)
def test_what_is_possible(override: str, allowed: str) -> None:
    with pytest.raises(UserError) as found:
        load_config("vitb_k400", [override])
    assert f" is not possible: {allowed} (from {override})" in str(found.value)


def test_values_that_do_not_fit_together_name_the_whole_command() -> None:
    with pytest.raises(UserError, match=r"\(config vitb_k400 clip\.frames=15 seed=3\)$"):
        load_config("vitb_k400", ["clip.frames=15", "seed=3"])
    with pytest.raises(UserError, match=r"clip\.cube_frames=2$"):
        Config().updated({"clip.frames": 15})


def test_a_chain_of_bases_is_at_most_twenty_long(tmp_path: Path) -> None:
    for number in range(23):
        (tmp_path / f"c{number}.yaml").write_text(f"base: c{number + 1}\n" if number < 22 else "seed: 5\n")
    assert load_config(str(tmp_path / "c2.yaml")).seed == 5
    with pytest.raises(UserError, match="more than 20 bases: copy their values into one file"):
        load_config(str(tmp_path / "c0.yaml"))
    (tmp_path / "x.yaml").write_text("base: y\n")
    (tmp_path / "y.yaml").write_text("base: x\n")
    with pytest.raises(UserError, match=r"remove a link of x\.yaml -> y\.yaml -> x\.yaml"):
        load_config(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("text", ["=3", "", "seed"])
def test_an_override_has_a_key_and_a_value(text: str) -> None:
    with pytest.raises(UserError, match=r"is not section\.key=value: write for example"):
        load_config("vitb_k400", [text])


def test_a_key_has_at_most_twenty_sections() -> None:
    with pytest.raises(UserError, match="unknown key"):
        load_config("vitb_k400", [f"{'a.' * 20}b=1"])
    with pytest.raises(UserError, match="names a section in more than 20 sections"):
        load_config("vitb_k400", [f"{'a.' * 21}b=1"])
