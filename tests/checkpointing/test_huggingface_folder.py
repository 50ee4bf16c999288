"""Folders of transformers: which files hold the weights, and the preprocessing folded into the projection."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.checkpointing.huggingface_folder import (
    adapt_pixels,
    fold_pixels,
    read_folder,
    read_json_file,
    weight_files,
)
from motionmae.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
STATE = {
    "encoder.project.weight": torch.randn(5, 4 * 3, generator=torch.Generator().manual_seed(0)),
    "encoder.project.bias": torch.randn(5, generator=torch.Generator().manual_seed(1)),
    "encoder.norm.weight": torch.ones(5),
}


def project(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Project cubes of 4 pixels, (n, 4, 3) with the colours last."""
    weight, bias = state["encoder.project.weight"].double(), state["encoder.project.bias"].double()
    return pixels.double().flatten(1) @ weight.T + bias


@pytest.mark.parametrize(
    ("settings", "normalise"),
    [
        ({}, lambda x: (x / 255 - torch.tensor(MEAN)) / torch.tensor(STD)),
        ({"do_normalize": False}, lambda x: x / 255),
        ({"do_rescale": False, "do_normalize": False}, lambda x: x),
        ({"do_rescale": False}, lambda x: (x - torch.tensor(MEAN)) / torch.tensor(STD)),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, lambda x: x / 127.5 - 1),
        (
            {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
            lambda x: (x / 255 - torch.tensor((0.5, 0.4, 0.3))) / torch.tensor((0.2, 0.3, 0.4)),
        ),
        (
            {"image_std": [0.229, 0.224, 0.226]},
            lambda x: (x / 255 - torch.tensor(MEAN)) / torch.tensor((0.229, 0.224, 0.226)),
        ),
        (
            {"image_mean": [0.485, 0.456, 0.407]},
            lambda x: (x / 255 - torch.tensor((0.485, 0.456, 0.407))) / torch.tensor(STD),
        ),
    ],
)
def test_the_projection_of_our_pixels_is_that_of_theirs(tmp_path: Path, settings: dict[str, Any], normalise: Any):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "size": {"shortest_edge": 224}}))
    grey = torch.randint(0, 256, (7, 4, 3), generator=torch.Generator().manual_seed(2)).float()
    ours = (grey / 255 - torch.tensor(MEAN)) / torch.tensor(STD)  # what our encoder projects
    adapted = adapt_pixels(STATE, tmp_path)
    expected = project(STATE, normalise(grey))
    assert float((project(adapted, ours) - expected).abs().max() / expected.abs().max()) < 1e-5
    assert adapted["encoder.project.weight"].dtype == torch.float32
    assert adapted["encoder.norm.weight"] is STATE["encoder.norm.weight"]
    assert (adapted is STATE) == (not settings)


def test_without_a_preprocessor_nothing_changes(tmp_path: Path):
    assert adapt_pixels(STATE, tmp_path) is STATE
    identity = fold_pixels(STATE, torch.ones(3).double(), torch.zeros(3).double())
    assert all(torch.equal(identity[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("wrong", [{"image_std": [0.2, 0.0, 0.2]}, {"rescale_factor": 0}, {"image_mean": [0.5]}])
def test_an_impossible_preprocessor_is_one_sentence(tmp_path: Path, wrong: dict[str, Any]):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"preprocessor_config\.json cannot be read \((image|rescale)"):
        adapt_pixels(STATE, tmp_path)


def test_the_first_of_the_usual_files_is_taken(tmp_path: Path):
    assert weight_files(tmp_path) == []
    assert read_folder(tmp_path, lambda path: {}) is None
    index = {"metadata": {}, "weight_map": {"a": "part-2.bin", "b": "part-1.bin", "c": "part-2.bin"}}
    for name, expected in (
        ("pytorch_model.bin.index.json", ["part-1.bin", "part-2.bin"]),
        ("model.safetensors.index.json", ["part-1.bin", "part-2.bin"]),
        ("pytorch_model.bin", ["pytorch_model.bin"]),
        ("model.safetensors", ["model.safetensors"]),
    ):
        (tmp_path / name).write_text(json.dumps(index))
        assert weight_files(tmp_path) == [tmp_path / one for one in expected]
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").unlink()
    found = read_folder(tmp_path, lambda path: {path.name: 1, "both": path.name})
    assert found == ({"part-1.bin": 1, "part-2.bin": 1, "both": "part-2.bin"}, tmp_path / "part-1.bin")


@pytest.mark.parametrize("part", ["../part.bin", "/etc/passwd", ".hidden"])
def test_an_index_names_only_files_of_its_folder(tmp_path: Path, part: str):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(UserError, match=r"index\.json cannot be read \(weight_map\.a: String should have another form"):
        weight_files(tmp_path)
    with pytest.raises(UserError, match=r"absent\.json cannot be read \(No such file or directory\): restore it"):
        read_json_file(tmp_path / "absent.json", dict)
