"""Presets. Quantisation tables are compared with Pillow's."""

import io
import json
from typing import get_args

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_tools.decode import FrameSettings
from data_tools.make_shards.presets import PRESETS
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.manifest import Chroma
from tests.commands.functions import make_shards as main
from tests.data_tools.make_shards.in_process import decode_video
from tests.data_tools.make_shards.runs import fingerprint, make, manifest
from tests.data_tools.videos import draw_frames, write_video
from tests.shared_data import SHARED_DATA, needs_shared_data


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "large.mp4", draw_frames(3, 1280, 720))
    write_video(folder / "small.mp4", draw_frames(3, 320, 240))
    return folder


def tables(quality):
    """Quantisation tables of Pillow's JPEGs."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg", quality=quality)
    return Image.open(file).quantization


def stored(out):
    """First JPEG of each sample."""
    reader = open_reader(out, load_manifest(out))
    return [bytes(reader.read_frames(sample, [0])[0]) for sample in range(2)]


@pytest.mark.parametrize(
    ("options", "quality", "sizes"),
    [
        (("--preset", "small"), 50, {(256, 456, "420"), (240, 320, "420")}),
        (("--preset", "standard"), 90, {(256, 456, "420"), (240, 320, "420")}),
        (("--preset", "archive"), 95, {(320, 568, "444"), (240, 320, "420")}),
        ((), 90, {(256, 456, "420"), (240, 320, "420")}),
        (("--preset", "small", "--quality", "60"), 60, {(256, 456, "420"), (240, 320, "420")}),
        (("--preset", "archive", "--short-side", "128"), 95, {(128, 228, "444"), (128, 170, "444")}),
        (("--chroma", "444", "--short-side", "128"), 90, {(128, 228, "444"), (128, 170, "444")}),
    ],
)
def test_a_preset_sets_size_quality_and_chroma_and_options_override_it(videos, tmp_path, options, quality, sizes):
    assert make(videos, tmp_path / "out", *options) == 0
    pictures = stored(tmp_path / "out")
    headers = [simplejpeg.decode_jpeg_header(picture) for picture in pictures]
    assert {(height, width, chroma) for height, width, _, chroma in headers} == sizes
    assert all(Image.open(io.BytesIO(picture)).quantization == tables(quality) for picture in pictures)
    encoder = load_manifest(tmp_path / "out").encoder
    short_side = next((int(text) for text in options if text == "128"), max(height for height, *_ in sizes))
    assert (encoder.jpeg_quality, encoder.short_side) == (quality, short_side)
    assert ("444" in {chroma for *_, chroma in sizes}) == (encoder.chroma == "444")


def test_standard_is_the_default_and_its_files_know_no_chroma(videos, tmp_path):
    """Folders of earlier versions can be continued, and earlier versions can read the shards."""
    assert make(videos, tmp_path / "a") == make(videos, tmp_path / "b", "--preset", "standard") == 0
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert "chroma" not in manifest(tmp_path / "a")["encoder"]
    assert "chroma" not in json.loads((tmp_path / "a" / ".make_shards" / "plan.json").read_text())["settings"]


def test_another_preset_does_not_continue_a_folder(videos, tmp_path, capsys):
    assert make(videos, tmp_path / "out", "--preset", "archive") == 0
    assert make(videos, tmp_path / "out", "--preset", "small") == 2
    assert "chroma=444, quality=95, short_side=320, and this run has chroma=None" in capsys.readouterr().err


def test_help_says_what_each_preset_gives(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name, preset in PRESETS.items():
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{name} "))
        assert f"short side {preset.short_side}, quality {preset.quality}, chroma {preset.chroma}" in line
        assert " kB" in line
        assert " dB" in line


def test_full_chroma_keeps_narrow_columns_apart(tmp_path):
    """Red and blue columns of three stored pixels: half chroma mixes two of three pixels to violet."""
    red = np.arange(384) // 6 % 2 == 0
    pixels = np.where(red[:, None], (200, 20, 40), (40, 20, 200)).astype(np.uint8)
    path = write_video(tmp_path / "v.mp4", np.broadcast_to(pixels, (2, 256, 384, 3)), options={"crf": "1"})
    errors = {}
    for chroma in get_args(Chroma):
        jpegs = decode_video(path, FrameSettings(short_side=128, quality=95, chroma=chroma)).jpegs
        centres = simplejpeg.decode_jpeg(jpegs[1])[20:100, 4:-4:3].astype(int)
        errors[chroma] = np.abs(centres - pixels[8:-8:6]).mean()
    assert errors["444"] < 12
    assert errors["420"] > 2 * errors["444"]


@needs_shared_data
def test_small_takes_less_than_half_the_disk_of_real_clips():
    """At most 10 kB a frame, the mean over the clips of a data set."""
    for dataset in ("kinetics400", "ssv2"):
        sizes = {}
        for name, preset in PRESETS.items():
            settings = FrameSettings(preset.short_side, preset.quality, preset.chroma, stride=30)
            clips = sorted((SHARED_DATA / "videos" / dataset).iterdir())[:4]
            jpegs = [jpeg for clip in clips for jpeg in decode_video(clip, settings).jpegs]
            sizes[name] = sum(map(len, jpegs)) / len(jpegs)
        assert sizes["small"] <= 10_000
        assert sizes["small"] < 0.5 * sizes["standard"]
        assert sizes["standard"] < sizes["archive"]
