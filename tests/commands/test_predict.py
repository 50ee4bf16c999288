"""`motionmae predict`, against transformers and the Python interface."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import motionmae
from motionmae.__main__ import main
from tests.evaluation.huggingface import save_huggingface, their_logits, write_clip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A folder with a model and videos, and the probabilities of transformers for these."""
    folder = tmp_path_factory.mktemp("world")
    theirs = save_huggingface(folder / "model")
    videos = [write_clip(folder / "videos" / name, seed=n) for n, name in enumerate(("a.mp4", "deep/b.mp4"))]
    (folder / "videos/broken.avi").write_bytes(b"no video")
    (folder / "videos/notes.txt").write_text("no video")
    return folder, [their_logits(theirs, video).softmax(0).numpy() for video in videos]


def predict(world: Path, *words: str) -> int:
    return main(["predict", str(world / "model"), "--device", "cpu", *words])


def test_a_folder_as_table_json_and_csv(
    world: tuple[Path, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, expected = world
    out = [tmp_path / "s.json", tmp_path / "s.csv"]
    words = [str(folder / "videos"), "--top", "2", "--json", str(out[0]), "--csv", str(out[1])]
    assert predict(folder, *words) == predict(folder, *words) == 0  # the second replaces its own files
    shown = capsys.readouterr().out
    first, broken, second = json.loads(out[0].read_text())[0], *json.loads(out[0].read_text())[1:]
    records = {Path(one["video"]).name: one for one in (first, broken, second)}
    names = motionmae.load(folder / "model").class_names
    for name, scores in zip(("a.mp4", "b.mp4"), expected, strict=True):
        best = np.argsort(-scores)[:2]
        assert [one["class"] for one in records[name]["classes"]] == [names[n] for n in best]
        np.testing.assert_allclose([one["score"] for one in records[name]["classes"]], scores[best], atol=1e-5)
        assert f"{scores[best[0]]:.3f}" in shown
    assert records["broken.avi"]["classes"] == []
    assert "broken.avi cannot be read" in records["broken.avi"]["problem"]
    assert "not read: " in shown
    assert "notes.txt" not in shown
    rows = list(csv.DictReader(out[1].read_text().splitlines()))
    assert [Path(row["video"]).name for row in rows] == ["a.mp4", "broken.avi", "b.mp4"]
    assert float(rows[0]["score1"]) == records["a.mp4"]["classes"][0]["score"]
    assert rows[1]["problem"]


def test_views_and_a_timeline(world: tuple[Path, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, _ = world
    video = folder / "videos/a.mp4"
    model = motionmae.load(folder / "model", device="cpu")
    assert predict(folder, str(video), "--clips", "2", "--crops", "3", "--json", str(tmp_path / "v.json")) == 0
    [record] = json.loads((tmp_path / "v.json").read_text())
    assert record["views"] == 6
    found = model.predict(video, clips=2, crops=3).top(5)
    assert record["classes"] == [{"class": name, "score": round(score, 6)} for name, score in found]
    out = [str(tmp_path / name) for name in ("t.json", "t.csv", "t.png")]
    words = ["--timeline", "--every", "0.4", "--json", out[0], "--csv", out[1], "--picture", out[2]]
    assert predict(folder, str(video), *words) == 0
    [record] = json.loads(Path(out[0]).read_text())
    line = model.timeline(video, every=0.4)
    assert [window["frames"] for window in record["windows"]] == line.frames.tolist()
    assert [window["classes"][0]["class"] for window in record["windows"]] == [top[0][0] for top in line.top()]
    assert len(list(csv.DictReader(Path(out[1]).read_text().splitlines()))) == len(line.scores) > 1
    with Image.open(out[2]) as picture:
        assert picture.size[0] > 1000
    assert "0.00 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/gone.mp4"], "gone.mp4 does not exist: give video files, or folders of videos"),
        (["{}/videos/broken.avi"], "none of the 1 videos could be read"),
        (["{}/model"], "contains no video file"),
        (["{}/videos", "--top", "0"], "--top must be at least 1, not 0"),
        (["{}/videos", "--every", "1"], "add --timeline"),
        (["{}/videos", "--timeline", "--every", "-1"], "--every must be a positive number"),
        (["{}/videos", "--timeline", "--clips", "2"], "leave out --clips and --crops"),
        (["{}/videos", "--timeline", "--picture", "x.png"], "--picture draws one video, and 3 were found"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], said: str, world: tuple[Path, list[np.ndarray]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert predict(world[0], *(word.format(world[0]) for word in words)) == 2
    assert said in capsys.readouterr().err
