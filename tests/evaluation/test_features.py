"""Features of files and shards, nearest neighbours, and reconstructions of video files."""

import json
import os
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from motionmae.__main__ import main
from motionmae.config import ClipConfig
from motionmae.data.video.read_video import UnreadableVideo, read_central_clip, read_video, resize_short_side
from motionmae.evaluation import reconstructions
from motionmae.evaluation.features import find_videos
from motionmae.evaluation.load_model import load_embedding
from motionmae.evaluation.video_writer import write_mp4
from motionmae.training.validation.nearest import classify_by_neighbours
from tests.shared_data import SHARED_DATA, needs_shared_data
from tests.training.launch import run_ranks
from tests.training.other_run import hide_newest, read_while_it_saves
from tests.training.shards import make_shards


def write_video(path: Path, frames: int = 20, height: int = 40, width: int = 56, seed: int = 0) -> Path:
    """A bright bar that moves over a still gradient."""
    ramp = np.broadcast_to(np.linspace(0, 100, width)[None, :, None], (height, width, 3))
    images = []
    for number in range(frames):
        image = ramp + 10 * seed
        image[:, (3 * number) % width : (3 * number) % width + 6] = 230
        images.append(image.astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, images, fps=10)
    return path


def test_frames_of_a_file_are_those_of_opencv(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4")
    reader, expected = cv2.VideoCapture(str(path)), []
    while (got := reader.read())[0]:
        expected.append(got[1][..., ::-1])
    found = read_video(path, short_side=40, stride=3)
    assert found.shape == (7, 40, 56, 3)
    assert np.abs(found.astype(int) - np.stack(expected[::3])).mean() < 2
    assert read_video(path, 20).shape == (20, 20, 28, 3)
    assert len(read_video(path, 40, stride=2, most=4)) == 4
    clip = read_central_clip(path, ClipConfig(frames=4, size=32, stride=2, cube_size=8))
    whole = np.stack([resize_short_side(frame, 32) for frame in read_video(path, 40, 2)])
    assert torch.equal(clip, torch.from_numpy(whole[3:7, :, 6:38].copy()))
    long = read_central_clip(path, ClipConfig(frames=16, size=32, stride=2, cube_size=8))
    assert torch.equal(long[9], long[15])  # a short video repeats its last frame


def test_a_sample_has_the_masks_of_its_number(trained_run: Path, tmp_path: Path):
    height = reconstructions.LINE + 4 * 32  # of a block, below its title
    blocks = []
    for samples in (["3"], ["1", "3"]):
        out = tmp_path / f"{len(samples)}.png"
        assert main(["reconstruct", str(trained_run), "--samples", *samples, "--out", str(out)]) == 0
        with Image.open(out) as picture:
            blocks.append(np.array(picture)[-height:])
    assert np.array_equal(*blocks)


@needs_shared_data
@pytest.mark.parametrize("name", ["decord_video_0.mov", "decord_video_270.mov", "media3_sample_portrait.mp4"])
def test_rotated_files_stand_upright(name: str):
    """Against OpenCV, which applies the display matrix by itself."""
    path = SHARED_DATA / "videos" / "awkward" / name
    reader = cv2.VideoCapture(str(path))
    expected = reader.read()[1][..., ::-1]
    found = read_video(path, min(expected.shape[:2]), most=1)[0]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


def test_the_stamp_of_a_video_changes_with_its_size_and_with_its_time(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/a.mp4", "b.MOV", "notes.txt"):
        (tmp_path / name).write_bytes(b"old")
        os.utime(tmp_path / name, ns=(5, 5))
    found = [find_videos(tmp_path)]
    for content, time in ((b"new", 6), (b"longer", 6)):
        (tmp_path / "deep/a.mp4").write_bytes(content)
        os.utime(tmp_path / "deep/a.mp4", ns=(5, time))
        found.append(find_videos(tmp_path))
    assert [(list(stamps), others) for stamps, others in found] == [(["b.MOV", "deep/a.mp4"], 1)] * 3
    assert len({stamps["deep/a.mp4"] for stamps, _ in found}) == 3
    assert len({stamps["b.MOV"] for stamps, _ in found}) == 1


def test_features_of_a_folder(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos, out = tmp_path / "videos", tmp_path / "out.npz"
    for number in range(3):
        write_video(videos / "deep" / f"{number}.mp4", seed=number)
    (videos / "deep" / "2.mp4").rename(videos / "deep" / "2.3G2")
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "notes.txt").write_text("no video")
    argv = ["features", str(trained_run), "--videos", str(videos), "--out", str(out)]
    assert main(argv) == 0
    found = np.load(out)
    assert found["names"].tolist() == ["deep/0.mp4", "deep/1.mp4", "deep/2.3G2"]
    assert found["unreadable"].tolist() == ["broken.mp4"]
    shown = capsys.readouterr().out
    assert "broken.mp4 cannot be read" in shown
    assert "skipped 1 files" in shown
    model, loaded = load_embedding(trained_run)
    with torch.no_grad():
        expected = model.eval()(read_central_clip(videos / "deep" / "1.mp4", loaded.config.clip)[None])[0]
    assert np.allclose(found["features"][1], expected, atol=1e-6)

    parts = list((tmp_path / "out.npz.parts").rglob("*.jsonl"))
    write_video(videos / "late.mp4")
    assert main(argv) == 0
    assert len(np.load(out)["names"]) == 4
    [new] = set((tmp_path / "out.npz.parts").rglob("*.jsonl")) - set(parts)
    assert [json.loads(line)["item"] for line in new.read_text().splitlines()] == ["late.mp4"]  # only the new video

    write_video(videos / "broken.mp4")  # repaired
    write_video(videos / "late.mp4", seed=5)  # another one under the same name
    before = dict(zip(*(np.load(out)[key] for key in ("names", "features")), strict=True))
    assert main(argv) == 0
    after = dict(zip(*(np.load(out)[key] for key in ("names", "features")), strict=True))
    assert set(after) == {*before, "broken.mp4"}
    assert {name for name, feature in before.items() if not np.array_equal(feature, after[name])} == {"late.mp4"}
    (videos / "broken.mp4").write_bytes(b"no video")
    other = shutil.copytree(videos, tmp_path / "other")
    capsys.readouterr()
    assert main([*argv[:3], str(other), *argv[4:]]) == 2
    said = capsys.readouterr().err
    assert f"inputs: {videos} there, {other} here" in said
    assert "choose another --out" in said
    assert main([*argv[:1], str(trained_run), "--step", "8", *argv[2:]]) == 2
    assert "weights: " in capsys.readouterr().err

    table = tmp_path / "out.parquet"
    assert main([*argv[:-1], str(table)]) == 0
    rows = {row["name"]: row for row in parquet.read_table(table).to_pylist()}
    assert sorted(rows) == ["broken.mp4", "deep/0.mp4", "deep/1.mp4", "deep/2.3G2", "late.mp4"]
    assert rows["deep/1.mp4"]["feature"] == found["features"][1].tolist()
    assert rows["broken.mp4"]["feature"] is None
    assert "cannot be read" in rows["broken.mp4"]["reason"]

    with pytest.raises(SystemExit, match="2"):
        main([*argv[:-1], str(tmp_path / "out.csv")])
    assert "must end in .npz or .parquet" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["features", str(trained_run), "--videos", str(tmp_path / "empty"), "--out", str(out)]) == 2
    assert "contains no video file" in capsys.readouterr().err


def test_neighbours_vote_by_similarity():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 8)).astype(np.float32)
    labels = np.arange(60) % 3
    train = centres[labels] + 0.1 * generator.normal(size=(60, 8)).astype(np.float32) + 50  # 50: the common component
    test = centres + 50
    assert classify_by_neighbours(train, labels, test, 5, 0.07).tolist() == [0, 1, 2]
    one_near_two_far = np.array([[1, 0], [0, 1], [0.1, 1], [-1, -1]], np.float32)
    votes = classify_by_neighbours(one_near_two_far, np.array([0, 1, 1, 2]), np.array([[1, 0.1]], np.float32), 3, 0.07)
    assert votes.tolist() == [0]


def test_knn_command(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = (str(make_shards(tmp_path / name, classes=2)) for name in ("train", "test"))
    argv = ["knn", str(trained_run), "--train", train, "--test", test, "--k", "1", "--json", str(tmp_path / "k.json")]
    assert main(argv) == 0
    figures = json.loads((tmp_path / "k.json").read_text())
    assert figures["top1"] == 100  # the same videos: each is its own nearest neighbour
    assert figures == {"step": 9, "top1": 100, "chance": 50, "videos": 18, "missing": 0, "train_missing": 0}
    odd = str(make_shards(tmp_path / "odd", shards=1, samples=7, classes=2))  # four videos of a class, three of another
    assert main([*argv[:5], odd, *argv[6:]]) == 0
    figures = json.loads((tmp_path / "k.json").read_text())
    assert (figures["chance"], figures["videos"]) == (100 * 4 / 7, 7)
    assert main([*argv, "--k", "0"]) == 2
    assert "--k must be" in capsys.readouterr().err
    gone = make_shards(tmp_path / "gone", shards=1, classes=2)
    for shard in gone.glob("*.tar"):
        shard.write_bytes(b"")
    assert main([*argv[:5], str(gone), *argv[6:]]) == 2
    said = capsys.readouterr()
    assert f"none of the 9 videos of {gone} could be read" in said.err
    assert said.out.count("not read: ") == 9


@pytest.mark.parametrize("command", ["features", "knn"])
def test_ranks_read_the_same_checkpoint_of_a_run_that_saves_meanwhile(command: str, trained_run: Path, tmp_path: Path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    if command == "knn":
        train, test = (str(make_shards(tmp_path / name, classes=2)) for name in ("train", "test"))
        argv = ["--train", train, "--test", test]
    else:
        write_video(tmp_path / "videos" / "a.mp4")
        argv = ["--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out.npz")]
    before, newest = hide_newest(run)
    found = run_ranks(2, read_while_it_saves, run, newest, main, [command, str(run), *argv])
    assert found == [[before], [before]]
    assert (run / "checkpoints" / newest).is_dir()


def test_reconstructions_of_video_files(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos = [str(write_video(tmp_path / f"{number}.mp4", seed=number)) for number in range(2)]
    argv = ["reconstruct", str(trained_run), "--video", *videos, "--ratio", "0.9", "0.95"]
    for ending in ("png", "gif", "mp4"):
        assert main([*argv, "--out", str(tmp_path / f"out.{ending}")]) == 0
    assert cv2.imread(str(tmp_path / "out.png")).std() > 10
    with Image.open(tmp_path / "out.gif") as gif, av.open(str(tmp_path / "out.mp4")) as movie:
        assert gif.n_frames == len(list(movie.decode(video=0))) == 4
        # five panels a line (original, masked, space head, motion, time head), four lines: two videos, two ratios, each
        # below its title; on top the heading, a note on true contrasts (one line) and the names of the panels
        panel, text = 4 * 32, reconstructions.LINE
        assert gif.size == (5 * (panel + 4), 3 * text + 4 * (text + panel))
        shown = np.array(gif.convert("L"))
        for top in (0, text, 2 * text, 3 * text, 4 * text + panel):
            assert shown[top : top + text, :60].min() < 100, top
        assert shown[2 * text : 3 * text, 4 * (panel + 4) :].min() < 100  # "time head"
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--out", str(tmp_path / "out.bmp")])
    assert "must end in .png or .gif or .mp4" in capsys.readouterr().err
    for arguments, said in (
        (["--ratio", "-0.1"], "--ratio must be between 0 and 1, not -0.1"),
        (["--frames", "0"], "--frames must be at least 1, not 0"),
    ):
        assert main(["reconstruct", str(trained_run), *arguments]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert main(["reconstruct", str(trained_run), "--video", str(tmp_path / "broken.mp4")]) == 2
    assert "broken.mp4 cannot be read" in capsys.readouterr().err
    with pytest.raises(UnreadableVideo):
        read_video(tmp_path / "gone.mp4", 32)
