import errno
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from data_tools.decode import FrameSettings, QuarantineReason, UndecodableVideo, _frame_times
from data_tools.frames import FrameEncoder
from motionmae.errors import UserError
from tests.data_tools.make_shards.in_process import decode_video
from tests.data_tools.videos import (
    decode_jpegs,
    draw_frames,
    ffmpeg_count,
    ffmpeg_frames,
    psnr,
    set_display_matrix,
    write_sound,
    write_video,
)
from tests.shared_data import SHARED_DATA, needs_shared_data

WHOLE = FrameSettings()
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not here")


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("h264.mp4", "libx264", "yuv420p"),
        ("h264_444.mov", "libx264", "yuv444p"),
        ("h264_10_bit.mkv", "libx264", "yuv420p10le"),
        ("hevc.mp4", "libx265", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("xvid.avi", "mpeg4", "yuv420p"),
        ("wmv.asf", "wmv2", "yuv420p"),
        ("stream.ts", "libx264", "yuv420p"),
        ("old.flv", "flv", "yuv420p"),
        ("moving.gif", "gif", "rgb8"),
        ("jpegs.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_every_frame_of_common_codecs_is_stored_as_drawn(tmp_path, name, codec, pix_fmt):
    drawn = draw_frames(24)
    options = {"crf": "10"} if codec.startswith("libx") else {}
    path = write_video(tmp_path / name, drawn, codec, pix_fmt, options=options, full_range=codec == "mjpeg")
    decoded = decode_video(path, WHOLE)
    assert (decoded.source_frames, decoded.height, decoded.width) == (24, 48, 64)
    assert decoded.windows == [0]
    assert decoded.fps == pytest.approx(25, rel=0.02)
    assert decoded.times == pytest.approx([index / 25 for index in range(24)], abs=0.002)
    assert psnr(decode_jpegs(decoded.jpegs), drawn) > (22 if codec == "gif" else 27)


@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_right_whatever_matrix_and_range_the_video_uses(tmp_path, colorspace, full_range):
    drawn = np.zeros((4, 64, 64, 3), np.uint8)
    drawn[:, :32, :32], drawn[:, :32, 32:], drawn[:, 32:, :32], drawn[:, 32:, 32:] = (
        (200, 30, 40),
        (30, 180, 50),
        (40, 60, 210),
        (235, 235, 235),
    )
    # AVCOL_SPC_BT709 and SWS_CS_ITU709 are both 1; AVCOL_SPC_BT470BG and SWS_CS_ITU601 are both 5
    path = write_video(tmp_path / "v.mp4", drawn, colorspace=colorspace, full_range=full_range, options={"crf": "4"})
    stored = decode_jpegs(decode_video(path, WHOLE).jpegs)[0].astype(int)
    for rows, columns in ((8, 8), (8, 40), (40, 8), (40, 40)):
        square = (slice(rows, rows + 16), slice(columns, columns + 16))
        assert np.abs(stored[square] - drawn[0][square]).max() <= 8


@pytest.mark.parametrize("matrix", [1, 2, 4, 5, 6, 7, 9])  # of AVColorSpace
@pytest.mark.parametrize("colour_range", [ColorRange.UNSPECIFIED, ColorRange.MPEG, ColorRange.JPEG])
def test_frames_that_keep_their_size_are_what_swscale_makes_of_them(matrix, colour_range):
    frame = VideoFrame(48, 32, "yuv420p")
    frame.colorspace, frame.color_range = matrix, colour_range
    noise = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    stored = FrameEncoder(256, 90).scale(frame)
    swscaled = VideoReformatter().reformat(
        frame, format="yuvj420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG, interpolation=4
    )
    for plane, wanted in zip(stored, swscaled.planes, strict=True):
        rows = np.frombuffer(wanted, np.uint8).reshape(wanted.height, -1)
        assert np.array_equal(plane, rows[:, : wanted.width])


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda frames: frames),
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, (1, 2))),  # a phone in portrait orientation
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, (1, 2))),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, (1, 2))),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.transpose(0, 2, 1, 3)),
    ],
)
def test_frames_are_turned_as_the_display_matrix_says(tmp_path, matrix, upright):
    drawn = draw_frames(6)
    path = set_display_matrix(write_video(tmp_path / "v.mp4", drawn, options={"crf": "10"}), *matrix)
    decoded = decode_video(path, WHOLE)
    wanted = upright(drawn)
    assert (decoded.height, decoded.width) == wanted.shape[1:3]
    assert psnr(decode_jpegs(decoded.jpegs), wanted) > 27


@needs_ffmpeg
def test_rotation_agrees_with_the_ffmpeg_program(tmp_path):
    path = set_display_matrix(write_video(tmp_path / "v.mp4", draw_frames(6)), 0, 1, -1, 0)
    decoded = decode_video(path, WHOLE)
    assert psnr(decode_jpegs(decoded.jpegs), ffmpeg_frames(path, decoded.width, decoded.height)) > 30


@pytest.mark.parametrize(
    ("source", "stored"),
    [((640, 360), (456, 256)), ((360, 640), (256, 456)), ((320, 240), (320, 240)), ((258, 256), (258, 256))],
)
def test_the_short_side_is_at_most_256_and_small_videos_keep_their_size(tmp_path, source, stored):
    path = write_video(tmp_path / "v.mp4", draw_frames(2, *source))
    decoded = decode_video(path, WHOLE)
    assert (decoded.width, decoded.height) == stored
    assert simplejpeg.decode_jpeg_header(decoded.jpegs[0])[:4] == (*stored[::-1], "YCbCr", "420")


def test_odd_sizes_become_even(tmp_path):
    path = write_video(tmp_path / "v.webm", draw_frames(3, 61, 47), "libvpx-vp9", options={"crf": "10", "b": "0"})
    decoded = decode_video(path, WHOLE)
    assert (decoded.width, decoded.height) == (60, 48)


def test_settings_change_what_is_stored(tmp_path):
    path = write_video(tmp_path / "v.mp4", draw_frames(30, 96, 64))
    small = decode_video(path, FrameSettings(short_side=32))
    assert (small.width, small.height) == (48, 32)
    fine, coarse = (decode_video(path, FrameSettings(quality=quality)) for quality in (95, 40))
    assert sum(map(len, fine.jpegs)) > 1.5 * sum(map(len, coarse.jpegs))
    every_fourth = decode_video(path, FrameSettings(stride=4))
    whole = decode_video(path, WHOLE)
    assert every_fourth.jpegs == whole.jpegs[::4]
    assert every_fourth.times == whole.times[::4]
    assert every_fourth.source_frames == 30


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("clips", "window", "firsts"), [(1, 6, [12]), (2, 6, [0, 24]), (3, 8, [0, 11, 22])])
def test_windows_are_spread_evenly_and_do_not_overlap(tmp_path, stride, clips, window, firsts):
    path = write_video(tmp_path / "v.mp4", draw_frames(30))
    whole = decode_video(path, WHOLE)
    cut = decode_video(path, FrameSettings(stride=stride, clips=clips, window=window))
    length = window // stride
    assert cut.windows == [length * number for number in range(clips)]
    assert len(cut.jpegs) == len(cut.times) == length * clips
    for first, low in zip(firsts, cut.windows, strict=True):
        start = -(-first // stride) * stride
        assert cut.jpegs[low : low + length] == whole.jpegs[start : start + length * stride : stride]


@pytest.mark.parametrize("make", ["sound", "damaged"])
def test_only_the_frames_of_windows_are_encoded_and_counted(tmp_path, monkeypatch, make):
    path = write_video(tmp_path / "v.mp4", draw_frames(60, 128, 96), options={"g": "10", "bf": "0"})
    if make == "damaged":
        damage_packets(path)
    whole = decode_video(path, WHOLE)
    assert (whole.damaged_packets > 0) == (make == "damaged")
    encode, calls = FrameEncoder.encode, []
    monkeypatch.setattr(FrameEncoder, "encode", lambda *one: calls.append(1) or encode(*one))
    monkeypatch.setattr("data_tools.decode.MAX_STORED_BYTES", sum(map(len, whole.jpegs)) // 2)
    cut = decode_video(path, FrameSettings(clips=2, window=8))
    assert cut.jpegs == whole.jpegs[:8] + whole.jpegs[-8:]
    assert cut.times == whole.times[:8] + whole.times[-8:]
    assert (cut.source_frames, cut.damaged_packets) == (whole.source_frames, whole.damaged_packets)
    assert len(calls) == 16 if make == "sound" else 16 < len(calls) <= 32  # a damaged file takes a second pass


def test_a_video_that_the_windows_would_cover_stays_whole(tmp_path):
    path = write_video(tmp_path / "v.mp4", draw_frames(30))
    assert decode_video(path, FrameSettings(clips=5, window=6)) == decode_video(path, WHOLE)


def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0, 1, 2, 5, 6, 10, 20]
    path = write_video(tmp_path / "v.mp4", draw_frames(7), times=times, rate=10)
    decoded = decode_video(path, WHOLE)
    assert decoded.times == pytest.approx([time / 10 for time in times], abs=1e-4)
    assert decoded.fps == pytest.approx(6 / 2.0, rel=1e-3)


def test_times_that_step_back_are_replaced_by_the_rate():
    assert _frame_times([0.0, 0.3, 0.2], Fraction(10)) == ([0.0, 0.1, 0.2], 10.0)
    assert _frame_times([None, None], Fraction(2)) == ([0.0, 0.5], 2.0)
    assert _frame_times([3.0], None) == ([0.0], 25.0)
    assert _frame_times([3.0, 3.5, 4.5], Fraction(30)) == ([0.0, 0.5, 1.5], 1.333333)


HOUR = 3600 * 25  # frame durations


@pytest.mark.parametrize("ending", ["mkv", "mp4", "flv", "ts", "nut"])
@pytest.mark.parametrize("jump", [2 * HOUR, 24 * HOUR])
def test_a_clock_that_jumps_gives_way_to_the_rate_of_the_header(tmp_path, ending, jump):
    times = [*range(5), *range(jump, jump + 10)]
    codec = "flv" if ending == "flv" else "libx264"
    path = write_video(tmp_path / f"v.{ending}", draw_frames(15), codec, times=times, options={"bf": "0"})
    decoded = decode_video(path, WHOLE)
    assert decoded.fps == 25
    assert decoded.times == pytest.approx([index / 25 for index in range(15)])


def test_a_long_pause_is_no_jump(tmp_path):
    path = write_video(tmp_path / "v.mp4", draw_frames(4), times=[0, 1, 2, 60 * 25], options={"bf": "0"})
    assert decode_video(path, WHOLE).times == pytest.approx([0, 0.04, 0.08, 60], abs=0.001)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize("rate", [10**6, 10**9])
def test_a_rate_of_a_million_frames_is_none(tmp_path, ending, rate):
    path = write_video(tmp_path / f"v.{ending}", draw_frames(6), rate=rate, options={"bf": "0"})
    decoded = decode_video(path, WHOLE)
    assert decoded.fps == 25
    assert decoded.times == pytest.approx([index / 25 for index in range(6)])


def test_timestamps_below_a_millisecond_are_no_times():
    assert _frame_times([0.0, 1e-6, 2e-6], Fraction(10)) == ([0.0, 0.1, 0.2], 10.0)
    assert _frame_times([0.0, 1e-6, 0.25], Fraction(10)) == ([0.0, 1e-6, 0.25], 8.0)  # only one gap is short


def test_a_rate_of_zero_is_none(tmp_path):
    path = write_video(tmp_path / "v.avi", draw_frames(4), "mpeg4")
    content = bytearray(path.read_bytes())
    rate = content.index(b"strh") + 32
    content[rate : rate + 4] = bytes(4)
    path.write_bytes(content)
    decoded = decode_video(path, WHOLE)
    assert 1 < decoded.fps <= 60
    assert decoded.times == sorted(set(decoded.times))


def test_absurd_rates_of_headers_are_ignored():
    jump = [0.0, 1.7e9, 1.7e9 + 0.1]
    assert _frame_times(jump, Fraction(1, 10**8), Fraction(10)) == ([0.0, 0.1, 0.2], 10.0)
    assert _frame_times(jump, Fraction(20), Fraction(90000)) == ([0.0, 0.05, 0.1], 20.0)
    assert _frame_times(jump, Fraction(0), Fraction(10**9)) == ([0.0, 0.04, 0.08], 25.0)
    assert _frame_times([0.0, 1e-9, 2e-9], Fraction(10**9), None) == ([0.0, 0.04, 0.08], 25.0)
    assert _frame_times([0.0, 0.3, 0.2], Fraction(10), Fraction(20)) == ([0.0, 0.1, 0.2], 10.0)


def refused(path) -> QuarantineReason:
    with pytest.raises(UndecodableVideo) as caught:
        decode_video(path, WHOLE)
    assert caught.value.detail
    return caught.value.reason


def test_what_holds_no_frame_is_refused_with_the_reason(tmp_path):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 40)
    (tmp_path / "folder.mp4").mkdir()
    video = write_video(tmp_path / "v.mp4", draw_frames(), options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "headless.mp4").write_bytes(video[len(video) // 2 :])
    assert refused(tmp_path / "zero.mp4") is QuarantineReason.EMPTY
    assert refused(tmp_path / "text.mp4") is QuarantineReason.NOT_A_VIDEO
    assert refused(tmp_path / "headless.mp4") is QuarantineReason.NOT_A_VIDEO
    assert refused(tmp_path / "folder.mp4") is QuarantineReason.UNREADABLE
    assert refused(tmp_path / "gone.mp4") is QuarantineReason.UNREADABLE
    assert refused(write_sound(tmp_path / "sound.mp4")) is QuarantineReason.NO_VIDEO_STREAM
    assert refused(write_sound(tmp_path / "sound.wav")) is QuarantineReason.NO_VIDEO_STREAM


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.ERANGE, errno.EAGAIN, errno.EIO])
def test_an_error_of_ffmpeg_is_of_the_disk_only_if_the_file_cannot_be_read(tmp_path, monkeypatch, number):
    path = write_video(tmp_path / "v.mp4", draw_frames(3))

    def fail(*one, **more):
        raise OSError(errno.EIO, "dead disk")

    monkeypatch.setattr("data_tools.decode.open_video", lambda path, images: av.error.err_check(-number))
    assert refused(path) is QuarantineReason.NOT_A_VIDEO
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UndecodableVideo, match="dead disk") as caught:
        decode_video(path, WHOLE)
    assert caught.value.reason is QuarantineReason.UNREADABLE


def test_a_codec_without_decoder_is_named_so(tmp_path):
    path = write_video(tmp_path / "v.avi", draw_frames(3), "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZ9Z"))
    assert refused(path) is QuarantineReason.UNKNOWN_CODEC


def test_names_that_look_like_something_else_are_files(tmp_path, monkeypatch):
    video = write_video(tmp_path / "v.mp4", draw_frames(3))
    monkeypatch.chdir(tmp_path)
    for name in ("-loglevel.mp4", "pipe:0.mp4", "file with blanks %03d.mp4"):
        shutil.copy(video, tmp_path / name)
        assert decode_video(Path(name), WHOLE).source_frames == 3


@needs_ffmpeg
def test_a_truncated_file_keeps_the_frames_that_decode(tmp_path):
    whole = write_video(tmp_path / "whole.avi", draw_frames(60, 128, 96), "mpeg4")
    content = whole.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[: len(content) // 2])
    decoded = decode_video(cut, WHOLE)
    assert 0 < decoded.source_frames < 60
    assert decoded.source_frames == ffmpeg_count(cut)
    assert decoded.jpegs[:5] == decode_video(whole, WHOLE).jpegs[:5]


@needs_ffmpeg
def damage_packets(path):
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)


def test_damaged_packets_are_left_out_as_ffmpeg_does(tmp_path):
    path = write_video(tmp_path / "v.mp4", draw_frames(60, 128, 96), options={"g": "10", "bf": "0"})
    damage_packets(path)
    decoded = decode_video(path, WHOLE)
    assert decoded.damaged_packets > 0
    assert decoded.source_frames == ffmpeg_count(path)


def test_a_video_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", draw_frames(30))
    monkeypatch.setattr("data_tools.decode.MAX_STORED_BYTES", 10_000)
    assert refused(path) is QuarantineReason.TOO_LONG


@pytest.mark.parametrize(
    "settings",
    [{"short_side": 8}, {"quality": 0}, {"stride": 0}, {"clips": -1}, {"window": 0}, {"window": 3, "stride": 4}],
)
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(UserError, match=f"--{next(iter(settings)).replace('_', '-')}"):
        FrameSettings(**settings)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("hmdb51/cartwheel/hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi", 83),  # Latin-1 title
        ("hmdb51/wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi", 48),  # the header has 49, and times step back
        ("general/tree.avi", 68),  # the header has 444
        ("awkward/decord_corrupted.mp4", 49),  # one packet of 50 does not decode
        ("awkward/-video-with-dash-.mp4", 5),  # 1 x 1 pixels
    ],
)
def test_real_awkward_files_give_the_frames_that_ffmpeg_gives(name, frames):
    decoded = decode_video(SHARED_DATA / "videos" / name, WHOLE)
    assert decoded.source_frames == frames
    assert decoded.times == sorted(set(decoded.times))
