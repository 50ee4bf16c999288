"""The loss of predicting the mean, against a slow computation."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from motionmae.config import load_config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import open_reader
from motionmae.evaluation.load_model import load_pretrained
from motionmae.evaluation.mean_baseline import explained_variance, mean_baseline_losses
from motionmae.training.validation import heads
from tests.training.shards import make_shards, tiny_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("mean") / "shards")


def test_raw_frames_by_hand(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path, target={"normalize": False}, mask={"kind": "global", "ratio": 0.96})
    reader = open_reader(shards)
    n = reader.manifest.samples
    clips = torch.stack([read_clip(reader, number, config.clip) for number in range(n)]) / 255
    cubes = clips.reshape(n, 2, 2, 4, 8, 4, 8, 3).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n * 32, -1)
    by_hand = cubes.var(dim=0, unbiased=False).mean()  # all but one cube a clip are masked
    assert mean_baseline_losses(config)["space"] == pytest.approx(float(by_hand), rel=0.05)


def test_normalised_frames_have_unit_variance(shards: Path, tmp_path: Path) -> None:
    losses = mean_baseline_losses(tiny_run(shards, tmp_path))
    assert 0.8 < losses["space"] < 1
    assert 0 < losses["time"] < losses["space"]  # most of the frame is static


def test_only_trained_heads(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path)
    assert set(mean_baseline_losses(config.updated({"target.kind": "frame"}))) == {"space"}


@pytest.mark.long
def test_what_a_run_explains_of_other_shards(trained_run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explained_variance(trained_run, str(shards), clips=5)
    config = load_config(str(trained_run / "config.yaml"))
    config = config.updated({"data.shards": str(shards)})
    with ClipLoader(config.data, config.clip, seed=config.seed, batch=1, micro_batch_size=1) as loader:
        batches = list(islice(loader.batches(0), 5))
    model = load_pretrained(trained_run).model
    with torch.no_grad():
        losses = [model(batch.clips, batch.seeds) for batch in batches]
    means = mean_baseline_losses(config, clips=5)
    for head in ("space", "time"):
        one_by_one = sum(float(getattr(each, head)) for each in losses) / 5
        assert found[head] == pytest.approx(1 - one_by_one / means[head], abs=1e-5)

    monkeypatch.setattr(heads, "CLIPS", 2)  # a last part that is smaller
    again = explained_variance(trained_run, str(shards), clips=5)
    assert again == pytest.approx(found, abs=1e-5)
