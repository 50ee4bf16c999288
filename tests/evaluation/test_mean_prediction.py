"""The loss of predicting the mean, against a slow count of its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from motionmae.data.clips import read_clip
from motionmae.data.manifest import load_manifest
from motionmae.evaluation.mean_prediction import mean_prediction_losses
from tests.training.shards import make_shards, tiny_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("mean") / "shards")


def test_raw_frames_by_hand(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path, target={"normalize": False}, mask={"kind": "global", "ratio": 0.99})
    n = load_manifest(shards).samples
    clips = torch.stack([read_clip(shards, number, config.clip) for number in range(n)]) / 255
    cubes = clips.reshape(n, 2, 2, 4, 8, 4, 8, 3).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n * 32, -1)
    by_hand = cubes.var(dim=0, unbiased=False).mean()  # all but one cube a clip are masked
    assert mean_prediction_losses(config)["space"] == pytest.approx(float(by_hand), rel=0.05)


def test_normalised_frames_have_unit_variance(shards: Path, tmp_path: Path) -> None:
    losses = mean_prediction_losses(tiny_run(shards, tmp_path))
    assert 0.8 < losses["space"] < 1
    assert 0 < losses["time"] < losses["space"]  # most of the picture stands still


def test_only_trained_heads(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path)
    assert set(mean_prediction_losses(replace(config, target=replace(config.target, kind="frame")))) == {"space"}
