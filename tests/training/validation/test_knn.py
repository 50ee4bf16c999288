"""k-NN accuracy during pre-training, on one rank in this process, and with another order of the test classes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from motionmae.config import Config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.manifest import write_manifest
from motionmae.distributed.context import DistributedContext
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.training.validation import knn, rounds
from motionmae.training.validation.knn import KnnAccuracy
from motionmae.training.validation.measure import UnreadableShardsError
from tests.training.shards import make_shards, tiny_run
from tests.training.validation.workers import NoPause

GONE = CorruptSample(Reason.DECODE, "x.tar", "gone")
CPU = torch.device("cpu")
ONE = DistributedContext(rank=0, local_rank=0, world=1, device=CPU)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder / "train", samples=3, classes=3), make_shards(
        folder / "val", shards=1, samples=5, classes=3
    )


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])


def config_of(shards: tuple[Path, Path], tmp_path: Path) -> Config:
    train, val = map(str, shards)
    validation = {"shards": val, "knn_train": train, "knn_k": 3, "knn_temperature": 0.25}
    return tiny_run(shards[0], tmp_path, validation=validation)


@torch.no_grad()
def features_of(model: MotionMAE, shards: Path, config: Config) -> np.ndarray:
    """Return the mean tokens of the middle clips of all videos, at once."""
    reader = open_reader(shards)
    clips = torch.stack([read_clip(reader, sample, config.clip) for sample in range(reader.manifest.samples)])
    return model.encoder(cut_patches(clips, 8)).mean(1).numpy()


def test_neighbours_are_found_among_the_mean_tokens_of_middle_clips(
    shards: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(shards, tmp_path)
    model = build_motionmae(config).eval()
    asked: list[Any] = []
    monkeypatch.setattr(knn, "classify_by_neighbours", lambda *words: asked.extend(words) or np.array([0, 1, 1, 0, 2]))
    with torch.no_grad():
        measured = KnnAccuracy(config, ONE, sharded=False).measure(model, NoPause())
    train, labels, test, k, temperature = asked
    np.testing.assert_allclose(train, features_of(model, shards[0], config), atol=1e-5)
    np.testing.assert_allclose(test, features_of(model, shards[1], config), atol=1e-5)
    assert (labels.tolist(), k, temperature) == ([0, 1, 2, 0, 1, 2], 3, 0.25)
    assert measured.figures == {"knn": 60.0}  # of the classes 0, 1, 2, 0 and 1, the first, second and fourth are right
    assert (measured.videos, measured.missing, measured.confusion) == (5, 0, None)


def unreadable(errors: dict[tuple[str, int], Exception]) -> Callable[..., Any]:
    def read(reader: Any, sample: int, clip: Any) -> Any:
        if error := errors.get((Path(reader.folder).name, sample)):
            raise error
        return read_clip(reader, sample, clip)

    return read


class Counting(nn.Module):
    """An encoder that counts its forward passes, each of one clip."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.shapes: list[tuple[int, ...]] = []
        self.encoder.register_forward_pre_hook(lambda _, inputs: self.shapes.append(tuple(inputs[0].shape)))
        self.encoder.register_forward_hook(lambda _, inputs, output: output.flatten(1, 2).float())


@pytest.mark.parametrize(("sharded", "passes"), [(False, 8), (True, 11)])
def test_unreadable_videos_are_left_out(
    sharded: bool, passes: int, shards: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of the test shards are missing; at ZeRO 3 other ranks need a forward pass for each."""
    monkeypatch.setattr(knn, "read_clip", unreadable({("train", 1): GONE, ("val", 0): GONE, ("val", 4): GONE}))
    model = Counting()
    measured = KnnAccuracy(config_of(shards, tmp_path), ONE, sharded=sharded).measure(model, NoPause())
    assert (measured.videos, measured.missing) == (3, 2)
    assert model.shapes == [(1, 4, 16, 192)] * passes  # 16 patches of 8 x 8 pixels


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({("train", 2): OSError("the disk is gone")}, "the disk is gone"),
        ({("val", 2): OSError("the disk is gone")}, "the disk is gone"),
        ({("val", number): GONE for number in range(5)}, "none of the 5 videos of .*val can be read"),
    ],
)
def test_a_failure_ends_the_measurement(
    errors: dict[tuple[str, int], Exception], said: str, shards: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(knn, "read_clip", unreadable(errors))
    with pytest.raises(UnreadableShardsError, match=said):
        KnnAccuracy(config_of(shards, tmp_path), ONE, sharded=False).measure(Counting(), NoPause())


def test_a_video_without_a_class_is_named(shards: tuple[Path, Path], tmp_path: Path):
    measurement = KnnAccuracy(config_of(shards, tmp_path), ONE, sharded=False)
    measurement._train.manifest = replace(measurement._train.manifest, class_names=("bar0", "bar1"))
    with pytest.raises(UnreadableShardsError, match=r"in .*train has no class: give shards of a split with labels"):
        measurement.measure(Counting(), NoPause())


def test_a_rank_takes_every_second_video(shards: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine: list[list[int]] = []
    monkeypatch.setattr(rounds, "gather_objects", lambda found: mine.append([one[0] for one in found]) or [found] * 2)
    rank = DistributedContext(rank=1, local_rank=1, world=2, device=CPU)
    changed = config_of(shards, tmp_path).updated({"validation.knn_test": str(shards[0])})
    KnnAccuracy(changed, rank, sharded=False).measure(Counting(), NoPause())
    assert mine == [[1, 0, 2]] * 2  # the videos 1, 3 and 5 of six


def test_classes_are_matched_by_name(shards: tuple[Path, Path], tmp_path: Path):
    """The nearest training video of each video is itself: all are right, or none if the names moved on by one."""
    train = shards[0]
    (tmp_path / "test").mkdir()
    for path in train.iterdir():
        if path.name != "manifest.json":
            (tmp_path / "test" / path.name).hardlink_to(path)
    manifest = load_manifest(train)
    write_manifest(tmp_path / "test", replace(manifest, class_names=("bar1", "bar2", "bar0")))
    found = []
    for test in (train, tmp_path / "test"):
        config = config_of(shards, tmp_path).updated({"validation.knn_test": str(test), "validation.knn_k": 1})
        with torch.no_grad():
            model = build_motionmae(config).eval()
            found.append(KnnAccuracy(config, ONE, sharded=False).measure(model, NoPause()).figures["knn"])
    assert found == [100.0, 0.0]
