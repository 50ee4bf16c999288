"""`motionmae config`: what it prints, and that it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from motionmae.__main__ import main
from motionmae.config import Config, config_yaml, load_config, save_config
from motionmae.config.load import known_configs


def test_list_names_every_config_with_its_first_comment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == known_configs()
    assert any(line.startswith("vitl_k400 ") and line.endswith(" Table 6a, ViT-L on Kinetics-400.") for line in lines)


def test_show_prints_a_config_that_can_be_loaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "show", "vitl_k400", "optim.epochs=800"]) == 0
    (tmp_path / "vitl_k400.yaml").write_text(capsys.readouterr().out)
    assert load_config(str(tmp_path / "vitl_k400.yaml")) == load_config("vitl_k400", ["optim.epochs=800"])


def test_show_changed_leaves_the_defaults_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "show", "vitl_k400", "seed=7", "--changed"]) == 0
    text = capsys.readouterr().out
    assert (yaml.safe_load(text)["seed"], yaml.safe_load(text)["model"]) == (7, {"size": "vit_l"})
    assert len(text) < len(config_yaml(load_config("vitl_k400"))) / 2
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(str(tmp_path / "again.yaml")) == load_config("vitl_k400", ["seed=7"])


def test_diff_compares_configs_and_run_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "diff", "vitb_k400", "vitl_k400"]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model.size", '"vit_b"', "->", '"vit_l"'] in lines
    assert ["optim.global_batch_size", "1024", "->", "512"] in lines
    assert "name" not in [line[0] for line in lines]
    save_config(load_config("vitb_k400", ["name=again", "seed=3"]), tmp_path / "config.yaml")
    assert main(["config", "diff", "vitb_k400", str(tmp_path)]) == 1
    assert capsys.readouterr().out.split() == ["seed", "0", "->", "3"]
    assert main(["config", "diff", "vitb_k400", "vitb_k400"]) == 0


def test_the_schema_has_every_key_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == {*Config.model_fields, "base"}
    optim = schema["$defs"]["OptimConfig"]
    assert optim["properties"]["epochs"]["description"].startswith("Passes over the training set")
    assert not optim["additionalProperties"]
    assert schema["$defs"]["MaskConfig"]["properties"]["kind"]["enum"] == ["random", "tube", "time", "global"]
    for name, section in {"Config": schema, **schema["$defs"]}.items():
        for key, described in section["properties"].items():
            assert "description" in described or "$ref" in described, f"{name}.{key} has no docstring"


def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "vitl_k400", "optim.lr=1"]) == 2
    assert capsys.readouterr().err == "error: unknown key optim.lr (from optim.lr=1): did you mean optim.base_lr?\n"


def test_it_needs_no_torch() -> None:
    code = "import sys; from motionmae.__main__ import main; main(['config', 'list']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
