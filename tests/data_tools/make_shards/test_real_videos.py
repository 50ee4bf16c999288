import shutil

import numpy as np
import pytest

from motionmae.data.open_shards import open_reader
from tests.commands.functions import make_shards as main
from tests.data_tools.make_shards.runs import manifest, quarantine
from tests.data_tools.videos import decode_jpegs, ffmpeg_count, ffmpeg_frames, psnr
from tests.shared_data import SHARED_DATA, needs_shared_data

pytestmark = [
    needs_shared_data,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not here"),
]
VIDEOS = SHARED_DATA / "videos"
REASONS = {
    "derived_text_named.mp4": "not_a_video",
    "media3_invalid-bitstream.webm": "no_frames",
    "media3_long_edit_list_audioonly.mp4": "no_video_stream",
    "media3_sample_opus.mp4": "no_video_stream",
    "moviepy_result_zero_bytes.webm": "empty",
    "mp4parsecapi_chunk_out_of_range.mp4": "not_a_video",
    "mp4parsecapi_short-cenc.mp4": "no_frames",
    "small_AudioVideoInterleave.avi": "no_frames",
    "small_Mpeg4.mp4": "no_video_stream",
    "small_mp4-with-audio.mp4": "no_video_stream",
    "torchcodec_sine_mono_s16.wav": "no_video_stream",
}
CHROMA_LIMITED = ("torchcodec_av1_video.mkv", "torchcodec_h264_10bits.mp4", "decord_corrupted.mp4")
"""Rendered test patterns whose colours change from pixel to pixel: 4:2:0 alone gives less than 30 dB."""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    assert main(["folder", "--videos", str(VIDEOS), "--out", str(out)]) == 0
    return out


def test_every_file_has_an_outcome_and_ffmpeg_agrees(out):
    files = {path.relative_to(VIDEOS).as_posix() for path in VIDEOS.rglob("*") if path.is_file()}
    reader = open_reader(out)
    stored = {reader.read_json(sample)["source"]: sample for sample in range(reader.manifest.samples)}
    refused = quarantine(out)
    assert stored.keys() | refused.keys() == files - {"SOURCES.md"}
    assert {path.rpartition("/")[2]: reason for path, reason in refused.items()} == REASONS
    for path in refused:
        assert ffmpeg_count(VIDEOS / path) == 0
    for path, sample in stored.items():
        meta = reader.read_meta(sample)
        ends = sorted({0, meta.frames - 1})
        theirs = ffmpeg_frames(VIDEOS / path, meta.width, meta.height, f"select='eq(n,0)+gte(n,{ends[-1]})'")
        assert len(theirs) == len(ends), path  # ffmpeg has the same last frame and is upright
        ours = decode_jpegs([bytes(jpeg) for jpeg in reader.read_frames(sample, ends)])
        assert psnr(_luma(ours), _luma(theirs)) > 30, path
        if not path.endswith(CHROMA_LIMITED):
            assert psnr(ours, theirs) > 30, path


def _luma(frames):
    return frames.astype(float) @ np.array([[0.299], [0.587], [0.114]])


def test_ut_interaction_becomes_shards_in_one_command(tmp_path):
    videos = str(SHARED_DATA / "ut_interaction")
    assert main(["folder", "--videos", videos, "--split", "val", "--out", str(tmp_path)]) == 0
    content = manifest(tmp_path)
    assert (content["samples"], content["quarantined"]) == (37, 0)
    assert content["class_names"] == ["handshake", "hug", "kick", "point", "punch", "push"]
