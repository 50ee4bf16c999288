"""Pixels of interlaced, high-bit, rotated and oddly tagged videos, compared with what the ffmpeg program gives."""

import itertools
import shutil
import subprocess
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import pytest
import simplejpeg
from av.filter import Graph

from data_tools.decode import FrameSettings, QuarantineReason, UndecodableVideo
from motionmae.data.flow import encode_flow
from motionmae.data.open_shards import load_manifest
from motionmae.data.video.read_video import UnreadableVideo, read_video
from tests.commands.functions import merge
from tests.data_tools.make_shards.in_process import decode_video
from tests.data_tools.make_shards.runs import make, quarantine
from tests.data_tools.videos import decode_jpegs, draw_frames, ffmpeg_frames, psnr, set_display_matrix, write_video

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not here")

WIDTH, HEIGHT = 96, 72
SAME = 60  # dB; the ffmpeg program 5.1 gives exactly the same bytes
JPEG = 44  # dB; ffmpeg 5.1 rounds the chroma of JPEGs in another way
TAGGED = 38  # dB; ffmpeg 5.1 ignores where a codec says that chroma lies; with fields scaled alone it would be 30 to 33
FLOW = 0.05  # pixels
LIMITS = (SAME, SAME, JPEG, -FLOW)
CONTENTS = {"progressive": "prog", "tff": "tff", "bff": "bff", "flagged": "tff"}  # to the mode of the filter setfield
FORMATS = ("yuv420p", "yuv422p", "yuv444p", "gray", "yuva420p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
Rotate = Callable[[np.ndarray], np.ndarray]
ROTATIONS: dict[str, tuple[tuple[int, ...], Rotate]] = {  # display matrix, and what it means
    "upright": ((1, 0, 0, 1), lambda frames: frames),
    "90": ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, (1, 2))),
    "180": ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
}
PRODUCT = list(itertools.product(CONTENTS, (32, HEIGHT), FORMATS, (False, True), ROTATIONS))


def draw(content: str) -> np.ndarray:
    """Three frames of a texture that moves; the two fields of an interlaced one are drawn at different times."""
    noise = np.random.default_rng(0).uniform(0, 255, (HEIGHT, 2 * WIDTH, 3)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)
    drawn = np.stack([texture[:, 2 * number : 2 * number + WIDTH] for number in range(6)])
    frames, later = drawn[::2].copy(), drawn[1::2]
    if content in ("tff", "bff"):
        second = 1 if content == "tff" else 0
        frames[:, second::2] = later[:, second::2]
    return frames


def write(path: Path, content: str, layout: str, full_range: bool, rotation: str) -> Path:
    """Write a lossless video whose frames carry the flags of ``content``."""
    graph = Graph()
    source = graph.add_buffer(width=WIDTH, height=HEIGHT, format=layout, time_base=Fraction(1, 25))
    sink = graph.add("buffersink")
    graph.link_nodes(source, graph.add("setfield", f"mode={CONTENTS[content]}"), sink).configure()
    colours = {"dst_colorspace": 5, "dst_color_range": 2 if full_range else 1}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, layout
        stream.codec_context.colorspace, stream.codec_context.color_range = colours.values()
        for number, picture in enumerate(draw(content)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=layout, **colours)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    return set_display_matrix(path, *ROTATIONS[rotation][0])


def ffmpeg_planes(path: Path, width: int, height: int) -> list[list[np.ndarray]]:
    """Planes of each frame as the ffmpeg program makes them for a JPEG."""
    scale = f"scale={width}:{height}:flags=bicubic:out_range=full,format=yuvj420p"
    command = ["ffmpeg", "-v", "quiet", "-nostdin", "-i", str(path), "-vf", scale, "-f", "rawvideo", "-"]
    content = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    frames = content.reshape(-1, ends[-1])
    return [
        [part.reshape(shape) for part, shape in zip(np.split(frame, ends[:-1]), shapes, strict=True)]
        for frame in frames
    ]


def flow_of(earlier: np.ndarray, later: np.ndarray) -> bytes:
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return encode_flow(search.calc(earlier, later, np.zeros((*earlier.shape, 2), np.float32)))


def raw_frames(path: Path, short_side: int = HEIGHT) -> np.ndarray:
    """What --raw stores."""
    decoded = decode_video(path, FrameSettings(short_side=short_side, raw=True))
    pixels = np.frombuffer(b"".join(decoded.jpegs), np.uint8)
    return pixels.reshape(-1, decoded.height, decoded.width, 3)


def compare(folder: Path, content: str, short_side: int, layout: str, full_range: bool, rotation: str) -> list[float]:
    """PSNR in dB between ours and ffmpeg's of --raw, read_video and JPEGs; less of flow, in pixels."""
    path = write(folder / "v.mp4", content, layout, full_range, rotation)
    raw = raw_frames(path, short_side)
    height, width = raw.shape[1:3]
    size = (height, width) if rotation == "90" else (width, height)  # the program would blur chroma in another axis
    pixels = ROTATIONS[rotation][1](ffmpeg_frames(path, *size, rotate=False))
    stored = decode_video(path, FrameSettings(short_side=short_side, quality=100, flow=1))
    planes = ffmpeg_planes(path, width, height)
    jpegs = [simplejpeg.encode_jpeg_yuv_planes(*frame, quality=100) for frame in planes]
    lumas = [frame[0] for frame in planes]
    differences = []
    for found, *pair in zip(stored.flows, lumas, [*lumas[1:], lumas[-1]], strict=True):
        differences.append(np.median(np.abs(vectors(found) - vectors(flow_of(*pair)))))
    return [
        psnr(raw, pixels),
        psnr(read_video(path, short_side), pixels),
        psnr(decode_jpegs(stored.jpegs), decode_jpegs(jpegs)),
        -max(differences),
    ]


def vectors(field: bytes) -> np.ndarray:
    """Displacements of a stored flow field, in pixels."""
    return np.frombuffer(zlib.decompress(field[4:]), "<i2") / 64


def pairwise() -> list[tuple[str, int, str, bool, str]]:
    """32 cases in which each pair of values occurs."""
    cases = []
    for (row, content), (column, layout) in itertools.product(enumerate(CONTENTS), enumerate(FORMATS)):
        short_side = (32, HEIGHT)[(row // 2 + column) % 2]
        full_range = (row + column // 2) % 2 == 1
        cases.append((content, short_side, layout, full_range, list(ROTATIONS)[(row + column) % 4]))
    return cases


def test_the_short_matrix_has_every_pair():
    for one, other in itertools.combinations(range(5), 2):
        assert {(case[one], case[other]) for case in pairwise()} == {(case[one], case[other]) for case in PRODUCT}


@pytest.mark.parametrize("case", pairwise(), ids=lambda case: "-".join(map(str, case)))
def test_frames_are_those_of_the_ffmpeg_program(tmp_path, case):
    assert (np.array(compare(tmp_path, *case)) >= LIMITS).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", FORMATS)
def test_frames_are_those_of_the_ffmpeg_program_in_the_whole_matrix(tmp_path, layout):
    cases = [case for case in PRODUCT if case[2] == layout]
    found = {case: compare(tmp_path, *case) for case in cases}
    print(layout, np.min(list(found.values()), axis=0))
    assert not [case for case in cases if (np.array(found[case]) < LIMITS).any()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v.mpg", "-c:v mpeg2video -flags +ilme+ildct -top 1 -q:v 2"),
        ("v.mxf", "-c:v mpeg2video -pix_fmt yuv422p -flags +ilme+ildct -top 0 -q:v 2 -s 720x576 -intra_vlc 1"),
        ("v.mp4", "-c:v libx264 -x264opts tff=1 -pix_fmt yuv420p -crf 10"),
        ("v.mkv", "-c:v libx264 -x264opts bff=1 -pix_fmt yuv444p -crf 10"),
        ("v.dv", "-c:v dvvideo -s 720x576 -pix_fmt yuv420p -r 25"),
        ("v.avi", "-c:v dvvideo -s 720x480 -pix_fmt yuv411p -r 30000/1001"),
    ],
)
def test_frames_of_interlaced_codecs_are_scaled_as_a_whole(tmp_path, name, options):
    path = encode(tmp_path / name, draw("tff").repeat(4, 0), *options.split())
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    for short_side in (40, 576):
        raw = raw_frames(path, short_side)
        assert psnr(raw, ffmpeg_frames(path, raw.shape[2], raw.shape[1])) >= TAGGED


def encode(path: Path, frames: np.ndarray, *options: str) -> Path:
    """Encode RGB frames with the ffmpeg program."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-", *options]
    subprocess.run([*command, str(path)], input=frames.tobytes(), check=True)
    return path


def test_the_sample_aspect_ratio_is_not_applied(tmp_path):
    path = encode(tmp_path / "v.mkv", draw("progressive"), "-vf", "setsar=2", "-c:v", "ffv1", "-pix_fmt", "yuv444p")
    raw = raw_frames(path)
    assert raw.shape[1:3] == (HEIGHT, WIDTH) == read_video(path, HEIGHT).shape[1:3]
    assert psnr(raw, ffmpeg_frames(path, WIDTH, HEIGHT)) >= SAME


def test_a_size_that_changes_between_interlaced_frames_is_followed(tmp_path):
    parts = [
        write_interlaced_stream(tmp_path / f"{number}.h264", size) for number, size in enumerate([(96, 72), (64, 96)])
    ]
    path = tmp_path / "v.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert psnr(raw_frames(path), ffmpeg_frames(path, 96, 72)) >= TAGGED


def write_interlaced_stream(path: Path, size: tuple[int, int]) -> Path:
    return encode(path, draw_frames(4, *size), "-c:v", "libx264", "-x264opts", "tff=1", "-pix_fmt", "yuv420p")


def write_matrix_tag(path: Path, number: int) -> Path:
    plain = write_video(path.parent.parent / "plain.mp4", draw_frames(4, WIDTH, HEIGHT), options={"crf": "4"})
    path.parent.mkdir(exist_ok=True)
    command = ["ffmpeg", "-v", "error", "-i", str(plain), "-c", "copy", "-bsf:v"]
    subprocess.run([*command, f"h264_metadata=matrix_coefficients={number}", str(path)], check=True)
    return path


@pytest.mark.parametrize("number", [0, 3, 8, 10, 11, 12, 13, 14, 15, 16, 17, 200])
def test_unusual_matrix_coefficients_are_decoded_as_decord_does(tmp_path, number):
    path = write_matrix_tag(tmp_path / "videos" / "v.mp4", number)
    wanted = decord.VideoReader(str(path))[:].asnumpy()
    assert psnr(raw_frames(path), wanted) >= SAME
    assert psnr(read_video(path, HEIGHT), wanted) >= SAME
    assert psnr(decode_jpegs(decode_video(path, FrameSettings()).jpegs), wanted) > 30


def test_the_manifest_says_which_matrix_coefficients_were_replaced(tmp_path, capsys):
    videos, out = tmp_path / "videos", tmp_path / "out"
    for number in (10, 14):
        write_matrix_tag(videos / f"{number}.mp4", number)
    write_video(videos / "plain.mp4", draw_frames(3))
    (videos / "later.mp4").touch()
    assert make(videos, out, "--samples-per-shard", "4") == 0
    note = {"10.mp4": {"bt2020c": "bt2020"}, "14.mp4": {"ictcp": "bt601"}}
    assert load_manifest(out).replaced_matrices == note
    assert "10.mp4, 14.mp4, decoded in spite of the tag bt2020c, ictcp" in " ".join(capsys.readouterr().out.split())
    write_video(videos / "later.mp4", draw_frames(4))
    (videos / "14.mp4").write_bytes(b"")
    assert make(videos, out, "--samples-per-shard", "4", "--retry") == 0  # keeps the stored samples, and their notes
    assert load_manifest(out).replaced_matrices == note
    write_video(tmp_path / "others" / "a.mp4", draw_frames(5))
    assert make(tmp_path / "others", tmp_path / "plain") == 0
    assert b"matrices" not in (tmp_path / "plain" / "manifest.json").read_bytes()
    assert merge([str(out), str(tmp_path / "plain"), "--out", str(tmp_path / "merged"), "--without-labels"]) == 0
    assert load_manifest(tmp_path / "merged").replaced_matrices == note


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v.avi", "-c:v msvideo1 -pix_fmt rgb555le"),
        ("v.avi", "-c:v rawvideo -pix_fmt rgb555le"),
        ("v.avi", "-c:v rawvideo -pix_fmt rgb565le"),
        ("v.mov", "-c:v rawvideo -pix_fmt rgb555be"),
        ("v.nut", "-c:v rawvideo -pix_fmt rgb565be"),
        ("v.nut", "-c:v rawvideo -pix_fmt bgr565be"),
    ],
)
def test_white_of_16_bits_is_white(tmp_path, name, options):
    drawn = draw_frames(3, WIDTH, HEIGHT)
    drawn[:, :36] = 255
    path = encode(tmp_path / name, drawn, *options.split())
    for short_side in (32, HEIGHT):
        for frames in (raw_frames(path, short_side), read_video(path, short_side)):
            assert frames[:, :8].min() == 255
        jpegs = decode_video(path, FrameSettings(short_side=short_side)).jpegs
        assert decode_jpegs(jpegs)[:, :8].min() > 252
    assert psnr(raw_frames(path), ffmpeg_frames(path, WIDTH, HEIGHT)) >= SAME


def write_lossless(path: Path, width: int, height: int, layout: str = "gray") -> Path:
    """Write three frames with a codec that takes pictures of any shape."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, layout
        for number in range(3):
            frame = av.VideoFrame(width, height, layout)
            frame.planes[0].update(bytes([50 * number + 50]) * frame.planes[0].buffer_size)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("width", "height", "stored"), [(1, 1, (2, 2)), (1, 64, (2, 64)), (400, 3, (400, 4)), (16384, 2, (16384, 2))]
)
def test_pictures_of_any_shape_are_stored(tmp_path, width, height, stored):
    path = write_lossless(tmp_path / "v.nut", width, height)
    decoded = decode_video(path, FrameSettings(quality=100))
    assert (decoded.width, decoded.height) == stored
    means = decode_jpegs(decoded.jpegs).mean((1, 2, 3))
    assert means == pytest.approx([50, 100, 150], abs=2)


def test_a_picture_that_is_too_wide_costs_its_video_only(tmp_path):
    videos = tmp_path / "videos"
    write_video(videos / "plain.mp4", draw_frames(3))
    for width, height in ((16386, 16), (70_000, 16), (16, 70_000)):
        write_lossless(videos / f"{width}.nut", width, height)
    assert make(videos, tmp_path / "out") == 0
    wide = ("16386.nut", "70000.nut", "16.nut")
    assert quarantine(tmp_path / "out") == dict.fromkeys(wide, "unsupported_frame")
    assert make(videos, tmp_path / "raw", "--raw") == 0
    assert quarantine(tmp_path / "raw") == dict.fromkeys(wide, "unsupported_frame")
    with pytest.raises(UnreadableVideo, match="16386 x 16 pixels"):
        read_video(videos / "16386.nut", 32)
    with pytest.raises(UnreadableVideo, match="at most 16384"):
        read_video(write_lossless(videos / "thin.nut", 400, 1), 224)


def test_a_pixel_format_that_cannot_be_converted_is_named_so(tmp_path):
    path = write_lossless(tmp_path / "v.nut", 32, 32, "rgb4")
    with pytest.raises(UndecodableVideo, match="in the format rgb4") as caught:
        decode_video(path, FrameSettings())
    assert caught.value.reason is QuarantineReason.UNSUPPORTED_FRAME
    with pytest.raises(UnreadableVideo, match="in the format rgb4"):
        read_video(path, 32)
