"""Loading a configuration: inheritance, overrides, and one clear sentence for everything that is wrong."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from motionmae.config import Config, MaskConfig, load, load_config, refuse_unused, save_config
from motionmae.config.load import CONFIG_FOLDER, known_configs
from motionmae.config.refusals import _COMMON
from motionmae.config.schema import accumulation_steps
from motionmae.config.section import marks_of
from motionmae.errors import UserError


def test_later_layers_win(tmp_path: Path) -> None:
    (tmp_path / "ground.yaml").write_text("seed: 1\nmask: {ratio: 0.5, kind: random}\n")
    (tmp_path / "top.yaml").write_text("base: ground\nmask: {ratio: 0.6}\n")
    config = load_config(str(tmp_path / "top.yaml"), ["mask.ratio=0.7", "optim.epochs=80"])
    assert (config.seed, config.mask.kind, config.mask.ratio, config.optim.epochs) == (1, "random", 0.7, 80)
    assert config.name == "top"


def test_saved_config_is_the_same_config(tmp_path: Path) -> None:
    config = load_config("vitl_k400", ["name=again", "data.crop_scale=[0.3, 0.9]"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_a_config_survives_json() -> None:
    """As in the file state.json of a checkpoint."""
    config = load_config("finetune_vitb_ssv2", ["data.crop_scale=[0.3, 0.9]", "optim.base_lr=1e-4"])
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.base_lr=1e-4", 1e-4),  # YAML 1.1 reads a text
        ("name=007", "007"),  # YAML reads a number
        ("log.wandb=off", "off"),  # YAML reads false
        ("launch.comment='a: b # c'", "a: b # c"),
        ("data.crop_scale=[0.5,1]", (0.5, 1.0)),
        ("data.flip=no", False),
        ("optim.warmup_epochs=3", 3.0),
    ],
)
def test_the_schema_decides_the_type_of_a_value(override: str, value: object, tmp_path: Path) -> None:
    section, _, key = override.partition("=")[0].rpartition(".")
    config = load_config("vitb_k400", [override])
    found = getattr(getattr(config, section) if section else config, key)
    assert (found, type(found)) == (value, type(value))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_an_updated_config_is_checked() -> None:
    config = load_config("vitb_k400")
    assert config.updated({"mask.ratio": 0.5, "data": {"threads": 3}}).data.threads == 3
    assert config.updated({"mask": MaskConfig(ratio=0.5)}).mask == MaskConfig(ratio=0.5)
    with pytest.raises(UserError, match=r"mask\.ratio=0\.001 is not possible: with mask\.kind=tube"):
        config.updated({"mask.ratio": 0.001})
    with pytest.raises(UserError, match=r"unknown key mask\.ratoi: did you mean mask\.ratio"):
        config.updated({"mask.ratoi": 0.5})


def test_a_refusal_names_the_file_that_set_the_value(tmp_path: Path) -> None:
    (tmp_path / "ground.yaml").write_text("mask: {ratio: 2}\n")
    (tmp_path / "top.yaml").write_text("base: ground\nseed: 3\n")
    with pytest.raises(UserError, match=rf"mask\.ratio=2 is not possible: .* \(from {tmp_path}/ground\.yaml\)"):
        load_config(str(tmp_path / "top.yaml"))
    assert load_config(str(tmp_path / "top.yaml"), ["mask.ratio=0.5"]).mask.ratio == 0.5


@pytest.mark.parametrize("base", ["ground", "ground.yaml", "../{}/ground", "{}/ground.yaml", "{}/ground"])
def test_a_base_is_relative_or_absolute_with_or_without_its_ending(base: str, tmp_path: Path) -> None:
    folder = tmp_path.name if base.startswith("..") else tmp_path
    (tmp_path / "ground.yaml").write_text("seed: 7\n")
    (tmp_path / "top.yaml").write_text(f"base: {base.format(folder)}\n")
    assert load_config(str(tmp_path / "top.yaml")).seed == 7


def test_an_installation_without_a_checkout_has_presets(tmp_path: Path) -> None:
    package = tmp_path / "motionmae"
    shutil.copytree(Path(load.__file__).parents[1], package)
    shutil.copytree(CONFIG_FOLDER, package / "presets")
    code = "from motionmae.config import load_config; print(load_config('vitl_k400').model.size)"
    python = partial(subprocess.run, [sys.executable, "-P", "-c", code], cwd=tmp_path, text=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert python(env=environment).stdout == "vit_l\n"
    shutil.rmtree(package / "presets")
    assert "holds no configs: give the path of a YAML file" in python(env=environment).stderr


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys; from motionmae.config import load_config; load_config('vitl_k400'); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_overrides_are_checked_together() -> None:
    config = load_config("vitb_k400", ["clip.frames=18", "clip.cube_frames=3"])
    assert config.clip.temporal_patches == 6


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mask.ratoi=0.5", ["unknown key mask.ratoi", "did you mean mask.ratio"]),
        ("optim.lr=1", ["unknown key optim.lr", "did you mean optim.base_lr?"]),
        ("epochs=3", ["unknown key epochs", "did you mean optim.epochs?"]),
        ("batch_size=8", ["did you mean optim.global_batch_size?"]),
        ("wd=1", ["did you mean optim.weight_decay?"]),
        ("num_workers=1", ["did you mean data.workers?"]),
        ("data.path=x", ["did you mean data.shards?"]),
        ("optim." + "batch=8", ["did you mean optim.global_batch_size?"]),
        ("optim.bach=8", ["did you mean optim.global_batch_size?"]),
        ("optim.batch_size=8", ["did you mean optim.global_batch_size?"]),
        ("optim.micro_batch_size=8", ["did you mean engine.micro_batch_size?"]),
        ("optm.epochs=8", ["did you mean optim?"]),
        ("nonsense.key=1", ["unknown key nonsense", "choose one of name"]),
        (
            "mask.ratio=1.0",
            ["mask.ratio=1.0 is not possible: it must be positive and less than 1 (from mask.ratio=1.0)"],
        ),
        ("mask.ratio=0.001", ["mask.ratio=0.001", "masks 0 of 196"]),
        ("mask.ratio=high", ["mask.ratio=high is not possible: it must be a number"]),
        ("data.flip=perhaps", ["data.flip=perhaps is not possible: it must be true or false"]),
        ("data.crop_scale=[0.5]", ["data.crop_scale=[0.5] is not possible: it must be a list of two numbers"]),
        ("data.crop_scale=[a,b]", ["data.crop_scale=[a, b] is not possible: it must be a list of two numbers"]),
        ("name=[a]", ["name=[a] is not possible: it must be a string"]),
        ("seed=-1", ["seed=-1 is not possible: it must be at least 0"]),
        ("seed=99999999999999999999", ["less than 2^63"]),
        ("optim.base_lr=.inf", ["optim.base_lr=.inf is not possible: it must be a number"]),
        ("optim.base_lr=inf", ["optim.base_lr=inf is not possible: it must be a finite number"]),
        ("data.crop_ratio=[0.5,inf]", ["data.crop_ratio=[0.5, inf] is not possible: it must be a finite number"]),
        ("optim.global_batch_size=", ["optim.global_batch_size= is not possible: it must be a whole number"]),
        ("launch.signal_seconds=86400", ["launch.signal_seconds=86400", "less than the time limit"]),
        ("base=k400", ["unknown key base", "choose one of name, output_dir, task, seed, clip, model"]),
        ("optim.foo=3", ["unknown key optim.foo", "choose one of optim.name, optim.global_batch_size"]),
        ("seed={a: 1}", ["seed={a: 1} is not possible: it must be a whole number"]),
        ("name=${nowhere}", ["name=${nowhere} is not possible: use letters, digits"]),
        ("name={", ["'name={' is not section.key=value: the value is not readable YAML"]),
        ("optim=3", ["optim=3 is not possible: it is a section: write optim.name=..."]),
        ("mask.decoder_ratio=0.6", ["mask.decoder_ratio=0.6", "choose 0, 0.25, 0.5 or 0.75"]),
        ("mask.kind=cube", ["mask.kind=cube", "random, tube, time, global"]),
        ("clip.frames=15", ["clip.frames=15", "multiple of clip.cube_frames=2"]),
        ("clip.size=230", ["clip.size=230", "multiple of clip.cube_size=16"]),
        ("optim.global_batch_size=1000", ["engine.micro_batch_size=32", "divide optim.global_batch_size=1000"]),
        ("optim.global_batch_size=10.5", ["optim.global_batch_size", "10.5"]),
        ("optim.warmup_epochs=1600", ["optim.warmup_epochs=1600", "less than optim.epochs"]),
        ("target.motion_granularity=16", ["target.motion_granularity=16", "less than clip.frames=16"]),
        ("engine.zero_stage=4", ["engine.zero_stage=4", "at least 0 and at most 3"]),
        ("data.crop_scale=[0.9, 0.5]", ["data.crop_scale", "the smaller first"]),
        ("data.shards='pipe://cat x'", ["data.shards=pipe://cat x", "URL of http, https, s3"]),
        ("data.cache_gb=0", ["data.cache_gb=0", "positive"]),
        ("data.remote_timeout=-1", ["data.remote_timeout=-1", "positive"]),
        ("data.remote_retries=-1", ["data.remote_retries=-1", "at least 0"]),
        ("checkpoint.keep_last=1", ["checkpoint.keep_last=1", "at least 2"]),
        ("name=../elsewhere", ["name=../elsewhere", "letters, digits"]),
        ("optim.global_batch_size", ["optim.global_batch_size", "section.key=value"]),
        ("mask=3", ["mask=3"]),
    ],
)
def test_refusals_name_key_value_and_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load_config("vitb_k400", [override])
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("config", "override", "section"),
    [
        ("vitb_k400", "finetune.init=runs/x", "finetune"),
        ("vitb_k400", "test.clips=2", "test"),
        ("finetune_vitb_k400", "mask.ratio=0.5", "mask"),
        ("finetune_vitb_k400", "target.kind=frame", "target"),
    ],
)
def test_what_a_run_would_not_look_at_is_refused(config: str, override: str, section: str) -> None:
    loaded = load_config(config, ["optim.epochs=100", override])
    with pytest.raises(UserError, match=f"{override} would change nothing: .* does not use the section {section}"):
        refuse_unused(loaded, ["optim.epochs=100", override])
    refuse_unused(loaded, ["optim.epochs=100", "model.size=vit_s"])


def test_unknown_config_proposes_a_near_one() -> None:
    with pytest.raises(UserError, match="did you mean vitl_k400"):
        load_config("vitl_k40")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: nowhere\n", "the config of `base: nowhere` does not exist"),
        ("base: me\n", "leads back to the file"),
        ("- a\n- b\n", "not hold a list"),
        ("seed: 1\nmask: {ratio: 0.5\noptim: {}\n", r"not readable YAML: .*expected ',' or '}'.* in line 3 .*line 2"),
        ("seed: 1\nname: a\nseed: 2\n", "not readable YAML: found duplicate key seed in line 3"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "me.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_config(str(tmp_path / "me.yaml"))


def test_a_base_is_found_among_the_projects_configs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: tiny_toy\nseed: 5\n")
    expected = load_config("tiny_toy", ["seed=5", "name=mine"])
    assert load_config(str(tmp_path / "mine.yaml")) == expected
    (tmp_path / "tiny_toy.yaml").write_text("seed: 1\nlaunch: {comment: beside}\n")  # the one beside it comes first
    assert load_config(str(tmp_path / "mine.yaml")).launch.comment == "beside"


@pytest.mark.parametrize("name", ["/nope/x.yaml", "nowhere.yml", "/nope/x"])
def test_a_path_without_a_file_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(UserError, match=f"there is no YAML file '{name}': the configs that come with the code are in"):
        load_config(name)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError):
        load_config(str(tmp_path / "evil.yaml"))
    assert not marker.exists()


@pytest.mark.parametrize("name", known_configs())
def test_every_committed_config_loads(name: str) -> None:
    assert isinstance(load_config(name), Config)
    assert (CONFIG_FOLDER / f"{name}.yaml").read_text().strip()


def test_nothing_after_the_sign_empties_a_text() -> None:
    assert load_config("tiny_toy", ["data.shards=", "launch.partition= "]).data.shards == ""


@pytest.mark.parametrize("setting", ["motion_sign=signed", "motion_granularity=2"])
def test_stored_flow_has_no_sign_and_no_granularity(setting: str) -> None:
    with pytest.raises(UserError, match=f"target.{setting} is not possible: it does not apply to stored flow"):
        load_config("ablations/table7_flow", [f"target.{setting}"])


def test_cells_of_two_by_two_need_an_even_side() -> None:
    with pytest.raises(UserError, match=r"mask\.decoder_ratio=0\.5 is not possible: .* do not fill a grid of 7 x 7"):
        load_config("vitb_k400", ["clip.cube_size=32", "mask.decoder_ratio=0.5"])


def test_batch_is_kept_by_accumulation() -> None:
    config = load_config("vitb_k400")
    assert accumulation_steps(config, world=32) == 1
    assert accumulation_steps(config, world=8) == 4
    with pytest.raises(
        UserError,
        match=r"divisible by engine.micro_batch_size=32 x 3 ranks: set optim.global_batch_size to a multiple of 3",
    ):
        accumulation_steps(config, world=3)
    with pytest.raises(UserError, match=r"set engine.micro_batch_size=16"):
        accumulation_steps(config, world=64)


def test_the_keys_of_other_programs_lead_to_keys_that_exist():
    known = marks_of(Config)
    assert all(key in known for keys in _COMMON.values() for key in keys)
    assert not set(_COMMON) & {key for key in known if "." not in key}
