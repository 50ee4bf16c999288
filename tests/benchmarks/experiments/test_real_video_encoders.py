"""Features of a frozen encoder: cells of time and place, whole frames, whole videos and their mirror images."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from transformers import VideoMAEConfig, VideoMAEModel

from benchmarks.experiments.real_video.cli import main
from benchmarks.experiments.real_video.encoders import (
    CELLS,
    CLIPS,
    TIMES,
    CellPooling,
    cell_features,
    read_whole_frames,
)
from benchmarks.experiments.real_video.hand_made import features_of
from benchmarks.experiments.real_video.readout import Part, accuracy, given, halves, leave_one_out
from motionmae.config import ClipConfig, ModelConfig
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.models.cubes import cut_patches
from motionmae.models.vit import Encoder
from tests.data.made_shards import meta

FRAMES, HEIGHT, WIDTH = 20, 32, 48


def make_shards(folder: Path, count: int = 4) -> Path:
    """Grey videos that darken from frame to frame, white at the left edge (class 0) or at the right edge (class 1)."""
    folder.mkdir()
    with ShardWriter(folder / "edges-000000.tar") as writer:
        for number in range(count):
            jpegs = []
            for frame in range(FRAMES):
                picture = np.full((HEIGHT, WIDTH, 3), 120 - 6 * frame + number, np.uint8)
                picture[:, slice(0, 8) if number % 2 == 0 else slice(40, 48)] = 255
                jpegs.append(simplejpeg.encode_jpeg(picture, quality=100, colorsubsampling="444"))
            facts = meta(FRAMES, HEIGHT, WIDTH, label=number % 2, class_name="", source=f"{number}.mp4")
            writer.write(f"{number:08d}", jpegs, facts)
    settings = EncoderSettings(HEIGHT, 100)
    write_manifest(folder, Manifest("edges", "all", ("left", "right"), settings, (writer.entry,)))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained VideoMAE of Hugging Face: 4 frames of 32 x 32 pixels in cubes of 2 x 8 x 8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "videomae"
    config = VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        use_mean_pooling=False,
    )
    VideoMAEModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("frames", "size", "width"), [(8, 64, 24), (12, 48, 36)])
def test_cells_hold_the_mean_and_the_deviation_of_their_tokens(frames, size, width):
    """8 x 8 cubes divide evenly into 4 x 4 cells. Of 6 x 6, a cell has the 2 that it touches, as PyTorch's pooling."""
    clip = ClipConfig(frames=frames, size=size, cube_size=8)
    torch.manual_seed(1)
    encoder = Encoder(clip, ModelConfig(size="vit_ti", width=width, depth=1, heads=2)).eval()
    clips = torch.randint(0, 256, (2, frames, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found = CellPooling(encoder)(clips).numpy().reshape(2, 2, width, TIMES, CELLS, CELLS)
        tokens = encoder(cut_patches(clips, 8)).reshape(2, frames // 2, size // 8, size // 8, width).numpy()
    times, places = frames // 2, size // 8
    for time in range(TIMES):
        for row in range(CELLS):
            for column in range(CELLS):
                part = tokens[
                    :,
                    time * times // TIMES : -(-(time + 1) * times // TIMES),
                    row * places // CELLS : -(-(row + 1) * places // CELLS),
                    column * places // CELLS : -(-(column + 1) * places // CELLS),
                ].reshape(2, -1, width)
                assert np.allclose(found[:, 0, :, time, row, column], part.mean(1), atol=1e-5)
                assert np.allclose(found[:, 1, :, time, row, column], part.std(1), atol=1e-4)


def test_clips_span_the_video_with_whole_frames_and_their_mirror_images(tmp_path: Path):
    reader = open_reader(make_shards(tmp_path / "shards"))
    clips = read_whole_frames(reader, 0, ClipConfig(frames=4, size=16, stride=2, cube_size=8), True).astype(int)
    assert clips.shape == (2 * CLIPS, 4, 16, 16, 3)
    assert (clips[:CLIPS, :, :, 0] > 250).all()  # the white edge
    assert np.abs(clips[CLIPS:] - clips[:CLIPS, :, :, ::-1]).max() == 0
    alone = read_whole_frames(reader, 0, ClipConfig(frames=4, size=16, stride=2, cube_size=8), False)
    assert np.array_equal(alone, clips[:CLIPS])
    grey = clips[:CLIPS, :, 8, 12, 0]
    starts = [0, 6, 12]  # candidates 0, 2, ... 18; of 6 surplus ones 0, 3 and 6
    assert np.abs(grey - [[120 - 6 * (start + 2 * frame) for frame in range(4)] for start in starts]).max() <= 2


def test_features_are_kept_beside_the_weights(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    reader = open_reader(make_shards(tmp_path / "shards"))
    ((features, mirrored),) = cell_features(str(weights), [reader], True)
    assert features.shape == mirrored.shape == (4, CLIPS * 2 * 24 * TIMES * CELLS * CELLS)
    assert np.abs(features - mirrored).max() > 1e-3
    files = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    ((again, _),) = cell_features(str(weights), [reader], True)
    assert np.array_equal(features, again)
    kept = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert {path: kept[path] for path in files} == files
    assert sum(map(len, kept.values())) == sum(map(len, files.values()))  # nothing was computed again
    ((alone,),) = cell_features(str(weights), [reader], False)
    assert np.allclose(alone, features, atol=1e-6)


def test_a_row_of_an_encoder(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [str(make_shards(tmp_path / name, 12)) for name in ("train", "test")]
    argv = ["--train", folders[0], "--test", folders[1], "--seed", "0", "--encoder", f"random={weights}"]
    for mirror in ([], ["--mirror"]):
        assert main([*argv, *mirror, "--json", "figures.json"]) == 0
        report = json.loads(Path("figures.json").read_text())
        assert report["mirror"] == bool(mirror)
        row = report["rows"][-1]
        assert row["features"] == "random"
        top1 = row["logistic_regression"]["top1"]
        assert re.search(rf"\| random \| {top1[0]:.1f} \|", capsys.readouterr().out)
        # each video's mirror image is a video of the other class, so that mirrored training teaches nothing
        assert (top1[0] == 100) == (not mirror)
    assert main([*argv[:-1], str(weights)]) == 2
    assert f"write NAME={weights}" in capsys.readouterr().err


def test_mirror_images_train_and_are_never_tested():
    features, mirrored = np.arange(6, dtype=np.float32)[:, None], -np.arange(6, dtype=np.float32)[:, None]
    train = Part(features, np.arange(6) % 2, list("aabbcc"), mirrored)
    test = Part(features + 10, np.arange(6) % 2, list("ddeeff"), mirrored - 10)
    seen: list[tuple[list[float], list[int], list[float]]] = []

    def classify(inputs: np.ndarray, labels: np.ndarray, others: np.ndarray, _: float) -> np.ndarray:
        seen.append((inputs[:, 0].tolist(), labels.tolist(), others[:, 0].tolist()))
        return np.zeros(len(others), int)

    accuracy(classify, (1,), given(train, test, 0), 0)
    assert seen == [([0, 1, 2, 3, 4, 5, 0, -1, -2, -3, -4, -5], [0, 1] * 6, [10, 11, 12, 13, 14, 15])]
    for fold in [*leave_one_out(train, test, 0), *halves(train, test, 0)]:
        for part in fold:
            assert part.mirrored is not None
            assert np.array_equal(part.mirrored, -part.features)
    seen.clear()
    accuracy(classify, (1, 2), given(train, test, 0), 0)
    assert [(len(inputs), len(others)) for inputs, _, others in seen] == [(8, 2), (8, 2), (12, 6)]


def test_hand_made_features_of_a_mirror_image(tmp_path: Path):
    reader = open_reader(make_shards(tmp_path / "shards"))
    (left, _), (right, _) = features_of(reader, 0, mirrored=True), features_of(reader, 1)
    assert np.abs(left - right).max() < 0.05
    assert np.abs(left - features_of(reader, 0)[0]).max() > 0.2
