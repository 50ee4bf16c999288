"""Files that FFmpeg would follow to other files, or draw: refused by the decoders of make_shards and of evaluation."""

import shutil
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_tools.decode import FrameSettings, QuarantineReason, UndecodableVideo
from motionmae.data.video.open_video import CONTAINERS, RAW_STREAMS, SOUND, RefusedFormat, note_on_outside, open_video
from motionmae.data.video.read_video import UnreadableVideo, read_video
from tests.data_tools.make_shards.in_process import decode_video
from tests.data_tools.videos import draw_frames, write_video

REFUSED = "its format is not that of a video"
FOLLOWS_OR_DRAWS = {
    *("hls", "concat", "dash", "imf", "sdp", "sap", "rtsp", "rtp", "tty", "bin", "xbin", "adf", "idf", "image2"),
    *("image2pipe", "png_pipe", "jpeg_pipe", "svg_pipe", "lavfi", "ffmetadata", "webm_dash_manifest", "mlv", "vobsub"),
    *("srt", "ass", "webvtt", "lrc", "concatf", "alias_pix", "data", "rawvideo", "video4linux2", "x11grab", "fbdev"),
}


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A video outside of the data set."""
    return write_video(tmp_path / "private" / "holiday.ts", draw_frames(6))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def playlist(path: Path, target: str) -> Path:
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:10", "#EXTINF:10.0,", target, "#EXT-X-ENDLIST")
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def frames_without_list(path: Path) -> int:
    """What FFmpeg gives without the list of formats, to show that the file would be followed or drawn."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def check_refused(path: Path) -> None:
    with pytest.raises(RefusedFormat, match=REFUSED):
        open_video(path)
    with pytest.raises(UndecodableVideo, match=REFUSED) as caught:
        decode_video(path, FrameSettings())
    assert caught.value.reason is QuarantineReason.REFUSED_FORMAT
    with pytest.raises(UnreadableVideo, match=f"{path.name} cannot be read: {REFUSED}"):
        read_video(path, 32)


def test_the_list_holds_no_format_that_opens_other_files_or_draws_text():
    allowed = {*CONTAINERS, *RAW_STREAMS, *SOUND}
    assert not allowed & FOLLOWS_OR_DRAWS
    assert not [name for name in allowed if name.endswith("_pipe")]
    known = {name for names in av.formats_available for name in names.split(",")}
    assert allowed <= known


@pytest.mark.parametrize("name", ["absolute.m3u8", "upper.M3U", "relative.m3u8", "url.m3u8"])
def test_playlists_are_refused(private: Path, folder: Path, name: str):
    target = {"relative.m3u8": f"../private/{private.name}", "url.m3u8": f"file://{private}"}.get(name, str(private))
    path = playlist(folder / name, target)
    assert frames_without_list(path) == 6
    check_refused(path)


@pytest.mark.parametrize("name", ["concat.mp4", "concat.ffconcat", "concat.avi"])
def test_lists_of_files_are_refused(private: Path, folder: Path, name: str):
    shutil.copy(private, folder / "beside.ts")
    (folder / name).write_text("ffconcat version 1.0\nfile beside.ts\n")
    assert frames_without_list(folder / name) == 6
    check_refused(folder / name)
    playlist(folder / "list.m3u8", str(private))
    (folder / name).write_text("ffconcat version 1.0\nfile list.m3u8\n")
    check_refused(folder / name)


@pytest.mark.parametrize("name", ["key.ans", "release.nfo", "art.asc"])
def test_text_types_are_not_drawn(folder: Path, name: str):
    (folder.parent / "letter.txt").write_text("THIS IS PRIVATE\n")
    (folder / name).symlink_to("../letter.txt")
    assert frames_without_list(folder / name) > 0
    check_refused(folder / name)


def test_pictures_and_their_patterns_are_refused(folder: Path):
    picture = simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    for name in ("001.jpg", "002.jpg", "picture.mp4"):
        (folder / name).write_bytes(picture)
    (folder / "%03d.jpg").write_bytes(b"x")
    assert frames_without_list(folder / "%03d.jpg") == 2  # those of other files
    for name in ("001.jpg", "%03d.jpg", "picture.mp4"):
        check_refused(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("titles.mp4", "1\n00:00:01,000 --> 00:00:02,000\nTHIS IS PRIVATE\n\n"),
        ("titles.mkv", "WEBVTT\n\n00:01.000 --> 00:02.000\nTHIS IS PRIVATE\n"),
        ("tags.mp4", ";FFMETADATA1\ntitle=x\n"),
        ("subtitles.idx", "# VobSub index file, v7 (do not modify this line!)\nsize: 720x576\n"),
    ],
)
def test_other_texts_are_refused(folder: Path, name: str, text: str):
    (folder / name).write_text(text)
    check_refused(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("named.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n/private/holiday.ts\n#EXT-X-ENDLIST\n"),
        ("drawing.mp4", "<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='/x.png'/></svg>"),
        ("dash.mpd", "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period/></MPD>"),
        ("old.asx", "<asx version='3.0'><entry><ref href='file:///private/holiday.ts'/></entry></asx>"),
        ("old.ram", "file:///private/holiday.ts\n"),
    ],
)
def test_lists_that_ffmpeg_does_not_know_are_not_followed_either(folder: Path, name: str, text: str):
    (folder / name).write_text(text)
    with pytest.raises(UndecodableVideo):
        decode_video(folder / name, FrameSettings())
    with pytest.raises(UnreadableVideo):
        read_video(folder / name, 32)


def refer_to(movie: Path, target: Path) -> None:
    """Make the track of a QuickTime file take its frames from ``target``, by an alias with an absolute path."""
    content = bytearray(movie.read_bytes())
    mdat = content.index(b"mdat")
    start = content.index(b"dref") + 12
    (old,) = struct.unpack_from(">I", content, start)
    name = str(target).replace("/", ":").encode()
    name += b"\0" * (len(name) % 2)
    alias = bytes(10 + 28 + 12 + 64 + 16 + 4 + 16) + struct.pack(">HH", 2, len(name)) + name + b"\xff\xff\0\0"
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    content[start : start + old] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = content.rindex(box, 0, start + 4) - 4 if box == b"dref" else content.index(box) - 4
        (size,) = struct.unpack_from(">I", content, place)
        struct.pack_into(">I", content, place, size + len(entry) - old)
    (size,) = struct.unpack_from(">I", content, mdat - 4)
    content[mdat + 4 : mdat - 4 + size] = bytes(size - 8)
    movie.write_bytes(content)


def test_a_movie_that_refers_to_another_file_does_not_read_it(tmp_path: Path, folder: Path):
    private = write_video(tmp_path / "private.mov", draw_frames(6))
    movie = Path(shutil.copy(private, folder / "refers.mov"))
    refer_to(movie, private)
    with av.open(str(movie), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6
    with pytest.raises(UndecodableVideo):
        decode_video(movie, FrameSettings())
    with pytest.raises(UnreadableVideo):
        read_video(movie, 32)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not here")
def test_a_container_with_subtitles_and_attachments_is_a_video(tmp_path: Path):
    video = write_video(tmp_path / "v.mp4", draw_frames(6))
    titles, output = tmp_path / "titles.srt", tmp_path / "v.mkv"
    titles.write_text("1\n00:00:00,000 --> 00:00:02,000\nx\n\n")
    command = ["ffmpeg", "-v", "error", "-i", str(video), "-i", str(titles), "-c:v", "copy", "-c:s", "srt"]
    command += ["-attach", str(titles), "-metadata:s:t", "mimetype=text/plain", str(output)]
    subprocess.run(command, check=True)
    assert decode_video(output, FrameSettings()).jpegs == decode_video(video, FrameSettings()).jpegs
    assert len(read_video(output, 32)) == 6


def test_videos_outside_of_their_folder_are_noted(folder: Path, private: Path):
    inside = folder / "a.mp4"
    inside.touch()
    (folder / "inner.mp4").symlink_to("a.mp4")
    (folder / "file.ts").symlink_to(private)
    (folder / "linked").symlink_to(private.parent)
    (folder.parent / "link_to_folder").symlink_to(folder)
    assert note_on_outside(folder, [inside, folder / "inner.mp4", folder.parent / "link_to_folder" / "a.mp4"]) == ""
    outside = [folder / "file.ts", folder / "linked" / private.name, private, folder / ".." / "private" / private.name]
    for path in outside:
        assert note_on_outside(folder, [inside, path]).startswith(f"1 of the videos are outside of {folder}, by links")
    assert note_on_outside(folder, outside).endswith(f"the first is {outside[0]}")


def write_still(path: Path, brand: bytes) -> Path:
    """Give a video the major brand of a picture, in its box `ftyp`."""
    video = write_video(path.with_suffix(".mp4"), draw_frames(3))
    content = bytearray(video.read_bytes())
    assert content[4:8] == b"ftyp"
    content[8:12] = brand
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("brand", [b"avif", b"heic", b"heix", b"heif", b"mif1"])
def test_a_picture_in_the_container_of_mp4_is_refused_but_where_pictures_are_asked_for(folder: Path, brand: bytes):
    path = write_still(folder / "still.heic", brand)
    with pytest.raises(RefusedFormat, match=r"^it is a picture \(AVIF or HEIF\)$"):
        open_video(path)
    with open_video(path, pictures=True) as container:
        assert container.metadata["major_brand"] == brand.decode()


@pytest.mark.parametrize("brand", [b"avis", b"hevc", b"msf1", b"isom"])
def test_animated_pictures_are_videos(folder: Path, brand: bytes):
    with open_video(write_still(folder / "moving.heic", brand)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_pictures_open_as_videos_of_one_frame_only_where_they_are_asked_for(folder: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    for ending in ("png", "webp", "bmp", "tiff"):
        Image.fromarray(pixels).save(folder / f"p.{ending}")
    (folder / "p.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
    (folder / "%03d.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
    (folder / "001.jpg").write_bytes(simplejpeg.encode_jpeg(pixels[:8]))
    for name in ("p.png", "p.webp", "p.bmp", "p.tiff", "p.jpg", "%03d.jpg"):
        with open_video(folder / name, pictures=True) as container:
            assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(32, 24)]
        with pytest.raises((RefusedFormat, av.FFmpegError)):
            open_video(folder / name)
    with open_video(write_video(folder / "v.mp4", draw_frames(3)), pictures=True) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    with pytest.raises(FileNotFoundError):
        open_video(folder / "absent.jpg", pictures=True)
    with pytest.raises(RefusedFormat):
        open_video(playlist(folder / "list.m3u8", "x.ts"), pictures=True)


def test_a_name_like_a_protocol_and_a_title_that_is_no_utf_8_open(folder: Path):
    path = write_video(folder / "v.mp4", draw_frames(3)).rename(folder / "http:a.mp4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with open_video(Path("http:a.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 3
    with av.open(str(folder / "t.avi"), "w") as container:
        container.metadata["title"] = "caf?"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (folder / "t.avi").write_bytes((folder / "t.avi").read_bytes().replace(b"caf?", b"caf\xe9"))
    with open_video(folder / "t.avi") as container:
        assert container.metadata["title"] == "caf\ufffd"
    assert path.exists()
