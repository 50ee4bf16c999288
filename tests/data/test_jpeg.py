import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from motionmae.data.clip_sampling import Crop
from motionmae.data.jpeg import Target, decode_clips, decode_frame
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.reader import SampleMeta

META = SampleMeta("a.tar", "7", 0, 25.0, frames=3, stride=1, height=96, width=128, windows=(0,), has_flow=False)


def smooth(seed, height=96, width=128):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


JPEGS = [simplejpeg.encode_jpeg(smooth(seed), 95) for seed in range(3)]


def decoded(jpegs, crop, size, meta=META):
    out = np.full((len(jpegs), size, size, 3), 99, np.uint8)
    numbers = {jpeg: number for number, jpeg in enumerate(jpegs)}  # equal JPEGs are a repeated frame
    decode_clips(dict(enumerate(jpegs)), meta, [Target([numbers[jpeg] for jpeg in jpegs], crop, out)])
    return out


@pytest.mark.parametrize("crop", [Crop(0, 0, 96, 128), Crop(10, 21, 64, 64), Crop(30, 5, 50, 100)])
def test_pixels_agree_with_another_decoder(crop):
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    theirs = [
        np.asarray(
            Image.open(io.BytesIO(jpeg)).crop(box).resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=None)
        )
        for jpeg in JPEGS
    ]
    difference = np.abs(decoded(JPEGS, crop, 64).astype(int) - theirs)
    assert difference.mean() < 3  # PIL smooths while it shrinks


def test_a_crop_of_the_clips_own_size_is_exact():
    out = decoded(JPEGS, Crop(10, 20, 64, 64), 64)
    for jpeg, frame in zip(JPEGS, out, strict=True):
        assert (frame == simplejpeg.decode_jpeg(jpeg)[10:74, 20:84]).all()


def test_flip_mirrors_left_to_right():
    plain, mirrored = (decoded(JPEGS, Crop(4, 8, 80, 90, flip), 48) for flip in (False, True))
    assert (mirrored == plain[:, :, ::-1]).all()
    assert (mirrored != plain).any()


@pytest.mark.parametrize("flip", [False, True])
def test_a_repeated_frame_is_decoded_once_and_filled_in(flip):
    jpegs = [JPEGS[0], JPEGS[1], JPEGS[1], JPEGS[1]]
    out = decoded(jpegs, Crop(0, 0, 96, 96, flip), 32)
    assert (out[1] == out[2]).all()
    assert (out[1] == out[3]).all()
    assert (out == decoded([bytes(bytearray(jpeg)) for jpeg in jpegs], Crop(0, 0, 96, 96, flip), 32)).all()


def test_a_strong_shrink_does_not_alias():
    lines = np.zeros((96, 128, 3), np.uint8)
    lines[:, ::4] = lines[:, 1::4] = 255  # two columns white, two black: grey from afar
    jpeg = simplejpeg.encode_jpeg(lines, 100, colorsubsampling="444")
    assert decoded([jpeg], Crop(0, 0, 96, 96), 32).std() < 60  # 127 without averaging
    assert decoded([jpeg], Crop(0, 0, 96, 96), 96).std() > 100


@pytest.mark.parametrize(("height", "is_averaged"), [(48, False), (64, False), (65, True), (96, True)])
def test_crops_are_averaged_if_both_sides_shrink_to_less_than_half(height, is_averaged):
    """The width shrinks to a third. Without averaging, every third column stays: two white, two black, two white."""
    lines = np.zeros((96, 128, 3), np.uint8)
    lines[:, ::4] = lines[:, 1::4] = 255
    jpeg = simplejpeg.encode_jpeg(lines, 100, colorsubsampling="444")
    found = decoded([jpeg], Crop(0, 0, height, 96), 32).std()
    assert found < 60 if is_averaged else found > 100


def test_sizes_may_change_from_call_to_call():
    small = simplejpeg.encode_jpeg(smooth(5, 40, 56), 95)
    for jpeg, meta in ((small, replace(META, height=40, width=56)), (JPEGS[0], META)) * 2:
        expected = simplejpeg.decode_jpeg(jpeg)[:32, :32]
        assert (decoded([jpeg], Crop(0, 0, 32, 32), 32, meta)[0] == expected).all()


@pytest.mark.parametrize(
    "jpeg",
    [b"", b"no picture", JPEGS[0][:100], JPEGS[0][:-200]],
    ids=["empty", "text", "head only", "end missing"],
)
def test_what_is_no_picture_is_corrupt(jpeg):
    with pytest.raises(CorruptSample, match=r"a\.tar:7: decode") as caught:
        decoded([jpeg], Crop(0, 0, 96, 96), 32)
    assert caught.value.reason == Reason.DECODE


@pytest.mark.parametrize("size", [(96, 120), (88, 128), (128, 96), (104, 136)])
def test_a_picture_of_another_size_is_corrupt(size):
    with pytest.raises(CorruptSample) as caught:
        decoded([simplejpeg.encode_jpeg(smooth(0, *size), 90)], Crop(0, 0, 80, 80), 32)
    assert caught.value.reason == Reason.DECODE


def encoded(picture, chroma="420", quality=90):
    return simplejpeg.encode_jpeg(picture, quality, colorsubsampling=chroma)


class TestRowsBelowTheCrop:
    """Decoding stops below the crop. The rest of the picture equals the plain decoder's."""

    @pytest.mark.parametrize("chroma", ["420", "422", "444"])
    @pytest.mark.parametrize("quality", [1, 50, 90, 100])
    def test_the_rows_are_those_of_the_whole_picture(self, chroma, quality):
        noisy = smooth(3) // 2 + np.random.default_rng(0).integers(0, 128, (96, 128, 3), dtype=np.uint8)
        jpeg = encoded(noisy, chroma, quality)
        whole = simplejpeg.decode_jpeg(jpeg, fastupsample=True)
        for rows in range(1, 97):
            picture = decode_frame(memoryview(jpeg), META, rows)
            assert len(picture) >= rows
            assert (picture[:rows] == whole[:rows]).all()

    def test_a_small_crop_takes_less_of_the_decoder(self, monkeypatch):
        rows = []
        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: rows.append(len(k["buffer"])) or decode(*a, **k))
        decoded(JPEGS, Crop(8, 0, 32, 64), 32)
        assert rows == [40, 40, 40]

    @pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
    def test_jpegs_of_other_encoders(self, options):
        file = io.BytesIO()
        Image.fromarray(smooth(4)).save(file, "jpeg", quality=90, subsampling=2, **options)
        whole = simplejpeg.decode_jpeg(file.getvalue(), fastupsample=True)
        assert (decode_frame(file.getvalue(), META, 50)[:50] == whole[:50]).all()

    @pytest.mark.parametrize("kept", [100, 0.2])
    def test_damage_within_the_rows_is_found(self, kept):
        jpeg = JPEGS[0][: kept if kept > 1 else int(kept * len(JPEGS[0]))]
        with pytest.raises(CorruptSample, match=r"a\.tar:7: decode"):
            decode_frame(jpeg, META, 64)

    def test_a_picture_of_another_size_is_corrupt(self):
        with pytest.raises(CorruptSample):
            decode_frame(encoded(smooth(0, 128, 128)), META, 32)


class TestClipsOfOneSample:
    """Clips that share frames get the pixels of clips that are decoded alone."""

    CROPS = (Crop(0, 0, 40, 60), Crop(30, 20, 66, 90, flip=True), Crop(5, 0, 90, 128))

    def test_pixels(self):
        frames = ([0, 1, 2], [2, 2, 2], [0, 2, 1])
        outs = [np.zeros((3, 24, 24, 3), np.uint8) for _ in self.CROPS]
        decode_clips(dict(enumerate(JPEGS)), META, list(map(Target, frames, self.CROPS, outs)))
        for numbers, crop, out in zip(frames, self.CROPS, outs, strict=True):
            assert (out == decoded([JPEGS[number] for number in numbers], crop, 24)).all()

    def test_each_frame_is_decoded_once(self, monkeypatch):
        calls = []
        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(a) or decode(*a, **k))
        outs = [np.zeros((4, 24, 24, 3), np.uint8) for _ in self.CROPS]
        decode_clips(
            dict(enumerate(JPEGS)),
            META,
            [Target([0, 1, 2, 2], crop, out) for crop, out in zip(self.CROPS, outs, strict=True)],
        )
        assert len(calls) == 3
