"""Long videos: segments that are samples of their own, and the size limit of a sample."""

import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from data_tools import decode, frame_store
from data_tools.decode import FrameSettings, QuarantineReason, UndecodableVideo
from data_tools.decode_worker import DecodeWorker
from data_tools.frame_store import FrameStore
from data_tools.segments import Clock, Segment, Segmenter, StoredFrame
from motionmae.errors import UserError
from tests.data_tools.make_shards.in_process import decode_segments, decode_video
from tests.data_tools.videos import draw_frames, write_video

WHOLE = FrameSettings()


def segments_of(path: Path, **settings):
    return list(decode_segments(path, FrameSettings(**settings)))


def joined(segments, field: str = "jpegs") -> list:
    return [one for segment in segments for one in getattr(segment, field)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """450 frames at 25 a second: 18 seconds."""
    return write_video(tmp_path_factory.mktemp("videos") / "v.mp4", draw_frames(450, 64, 48))


def frame_times(path: Path) -> list[float]:
    """Times of the frames that the ffprobe program shows, from the first one on."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "frame=pts_time", "-of", "csv=p=0"]
    lines = subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout.split()
    times = [float(line.strip(",")) for line in lines]
    return [time - times[0] for time in times]


class TestSegments:
    @pytest.mark.parametrize("stride", [1, 3])
    def test_segments_are_the_whole_video_in_pieces(self, video, stride):
        whole = decode_video(video, FrameSettings(stride=stride))
        segments = segments_of(video, segment_seconds=5, stride=stride)
        assert joined(segments) == whole.jpegs
        assert joined(segments, "times") == pytest.approx(frame_times(video)[::stride], abs=1e-5)
        assert [segment.segment for segment in segments] == [0, 1, 2, 3]
        assert [segment.is_last for segment in segments] == [False, False, False, True]
        assert [segment.times[0] for segment in segments] == pytest.approx([0, 5, 10, 15], abs=0.12)
        assert sum(segment.source_frames for segment in segments) == 450
        assert all(segment.fps == pytest.approx(25) and segment.windows == [0] for segment in segments)
        if stride == 1:
            assert [segment.source_frames for segment in segments] == [125, 125, 125, 75]

    def test_a_short_rest_joins_the_segment_before(self, video):
        assert [segment.source_frames for segment in segments_of(video, segment_seconds=8.5)] == [213, 237]
        assert [segment.source_frames for segment in segments_of(video, segment_seconds=20)] == [450]

    def test_a_short_video_is_one_segment(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", draw_frames(7))
        (segment,) = segments_of(path, segment_seconds=1)
        whole = decode_video(path, WHOLE)
        assert (segment.jpegs, segment.times, segment.is_last) == (whole.jpegs, whole.times, True)

    def test_flow_crosses_the_ends_of_segments(self, video):
        whole = decode_video(video, FrameSettings(flow=3, stride=2))
        segments = segments_of(video, segment_seconds=5, flow=3, stride=2)
        assert len(segments) == 4
        assert joined(segments, "flows") == list(whole.flows)
        assert all(len(segment.flows) == len(segment.jpegs) for segment in segments)

    def test_raw_pixels_are_cut_too(self, video):
        segments = segments_of(video, segment_seconds=9, raw=True)
        assert joined(segments) == list(decode_video(video, FrameSettings(raw=True)).jpegs)
        assert len(segments) == 2

    def test_a_segment_ends_before_it_exceeds_the_limit(self, video, monkeypatch):
        whole = decode_video(video, WHOLE)
        limit = sum(map(len, whole.jpegs)) // 6
        monkeypatch.setattr(decode, "MAX_STORED_BYTES", limit)
        segments = segments_of(video, segment_seconds=3600)
        assert joined(segments) == whole.jpegs
        assert 6 <= len(segments) <= 8
        assert all(sum(map(len, segment.jpegs)) <= limit for segment in segments)

    @pytest.mark.parametrize(
        "times",
        [
            [*range(100), *range(1_000_000_000, 1_000_000_100)],  # an IP camera that sets its clock
            [0, *range(50_000, 50_199)],
            [2 * number + number % 2 for number in range(200)],
        ],
    )
    def test_odd_clocks_give_times_that_increase(self, tmp_path, times):
        path = write_video(tmp_path / "v.mkv", draw_frames(200), times=times)
        segments = segments_of(path, segment_seconds=2)
        stored = joined(segments, "times")
        assert joined(segments) == decode_video(path, WHOLE).jpegs
        assert all(low < high for low, high in pairwise(stored))
        expected = [number / 25 for number in range(200)] if max(times) > 1e6 else frame_times(path)
        assert stored == pytest.approx(expected, abs=2e-3)
        assert all(segment.times[-1] - segment.times[0] < 3 and 0 < segment.fps < 100 for segment in segments)

    def test_segments_and_windows_exclude_each_other(self):
        with pytest.raises(UserError, match="--segment-seconds stores all of a video and --clips only windows"):
            FrameSettings(segment_seconds=10, clips=2)
        for seconds in (0.5, -1, 1e6, float("nan")):
            with pytest.raises(UserError, match="--segment-seconds"):
                FrameSettings(segment_seconds=seconds)


def test_a_clock_goes_on_without_times_and_never_back():
    clock = Clock(Fraction(10))
    given = [5.0, 5.1, None, 5.25, 5.0, 5.1, 5.5]
    assert [clock.time(time) for time in given] == [0, 0.1, 0.2, 0.25, 0.35, 0.45, 0.5]
    for rate in (None, Fraction(0), Fraction(10**9)):  # frame rates that headers claim
        clock = Clock(rate)
        assert [clock.time(None) for _ in range(3)] == [0, 0.04, 0.08]


def test_the_cutter_keeps_few_frames():
    """An hour in segments of ten seconds, of which the cutter never keeps more than one chunk."""
    segmenter, kept, ends = Segmenter(10, 2**30, 1 / 25), 0, []
    for number in range(3600 * 25):
        for part in segmenter.add(StoredFrame(number, number / 25, 0, b"x" * 20_000)):
            if isinstance(part, Segment):
                ends.append(part)
        kept = max(kept, len(segmenter._chunk) + len(segmenter._held))
    ends += [part for part in segmenter.finish(3600 * 25, 0) if isinstance(part, Segment)]
    assert [(end.number, end.source_frames) for end in ends] == [(number, 250) for number in range(360)]
    assert kept * 20_000 < 6e6


def test_a_segment_counts_its_own_frames_and_damaged_packets():
    """Twelve seconds in segments of four; packets before the frames 50 and 150 and after the last one are damaged."""
    segmenter, ends = Segmenter(4, 2**30, 1 / 25), []
    for number in range(300):
        damaged = 5 if number >= 150 else 2 if number >= 50 else 0
        ends += segmenter.add(StoredFrame(number, number / 25, damaged, b"x"))
    ends = [part for part in (*ends, *segmenter.finish(303, 9)) if isinstance(part, Segment)]  # three are not stored
    assert [(end.source_frames, end.damaged_packets) for end in ends] == [(100, 2), (100, 3), (103, 4)]


class TestSizeLimit:
    def find(self, path, monkeypatch, share: float, **settings) -> tuple[int, str]:
        """Decode with a limit of this share of the video's size: the number of frames decoded, and the message."""
        size = sum(map(len, decode_video(path, WHOLE).jpegs))
        monkeypatch.setattr(decode, "MAX_STORED_BYTES", int(share * size))
        frames: list[int] = []
        with pytest.raises(UndecodableVideo) as caught:
            decode_video(path, FrameSettings(**settings), lambda: frames.append(1))
        assert caught.value.reason is QuarantineReason.TOO_LONG
        return len(frames), caught.value.detail

    @pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
    def test_a_video_far_too_long_is_refused_when_it_has_begun(self, tmp_path, monkeypatch, ending):
        codec = "mpeg4" if ending == "avi" else "libx264"
        path = write_video(tmp_path / f"v.{ending}", draw_frames(450), codec)
        monkeypatch.setattr(decode, "_count_packets", lambda *_: 450)
        frames, message = self.find(path, monkeypatch, 0.4)
        assert frames <= 80
        for remedy in ("--segment-seconds", "--clips", "--stride", "--short-side", "docs/data/long_videos.md"):
            assert remedy in message
        assert "its 450 frames would take about" in message

    def test_raw_frames_to_come_are_not_taken_for_smaller(self, video, monkeypatch):
        monkeypatch.setattr(decode, "_count_packets", lambda *_: 450)
        monkeypatch.setattr(decode, "MAX_STORED_BYTES", 375 * 64 * 48 * 3)  # the video has 1.2 times as many
        frames: list[int] = []
        with pytest.raises(UndecodableVideo, match="its 450 frames would take about"):
            decode_video(video, FrameSettings(raw=True), lambda: frames.append(1))
        assert len(frames) <= 65
        monkeypatch.setattr(decode, "_count_packets", lambda *_: 480)  # with packets that hold no frame
        monkeypatch.setattr(decode, "frames_of_header", lambda *_: 480)
        monkeypatch.setattr(decode, "MAX_STORED_BYTES", 450 * 64 * 48 * 3)
        assert len(decode_video(video, FrameSettings(raw=True)).jpegs) == 450

    def test_a_header_that_claims_too_much_costs_no_video(self, video, monkeypatch):
        monkeypatch.setattr(decode, "frames_of_header", lambda *_: 10**7)
        size = sum(map(len, decode_video(video, WHOLE).jpegs))
        monkeypatch.setattr(decode, "MAX_STORED_BYTES", size)
        assert len(decode_video(video, WHOLE).jpegs) == 450

    def test_a_stream_without_length_is_counted_when_it_has_begun(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "v.mkv", draw_frames(450))
        live = tmp_path / "live.mkv"
        command = ["ffmpeg", "-nostdin", "-v", "error", "-i", path, "-c", "copy", "-live", "1", live]
        subprocess.run(command, check=True)
        count = decode._count_packets
        monkeypatch.setattr(decode, "_count_packets", lambda path, _, images: count(path, lambda: None, images))
        frames, message = self.find(live, monkeypatch, 0.4)
        assert frames <= 80
        assert "its 450 frames would take about" in message

    def test_if_packets_cannot_be_counted_the_limit_itself_is_found(self, video, monkeypatch):
        monkeypatch.setattr(decode, "frames_of_header", lambda *_: 0)
        monkeypatch.setattr(decode, "_count_packets", lambda *_: 0)
        frames, message = self.find(video, monkeypatch, 0.5)
        assert 200 < frames < 260
        assert "exceed" in message

    def test_flow_counts_too(self, video, monkeypatch):
        plain = decode_video(video, FrameSettings(flow=1))
        monkeypatch.setattr(decode, "MAX_STORED_BYTES", sum(map(len, plain.jpegs)) + 1)
        with pytest.raises(UndecodableVideo):
            decode_video(video, FrameSettings(flow=1))


@pytest.mark.parametrize("limit", [1, 10, 10**6])
def test_a_store_returns_its_frames_from_memory_and_from_disk(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(frame_store, "MEMORY_BYTES", limit)
    store = FrameStore(tmp_path)
    for _ in range(2):
        store.extend([b"abc", b"", b"defghijk"])
        store.extend([b"lm"])
        assert (list(store), list(store), len(store), store.size) == ([b"abc", b"", b"defghijk", b"lm"],) * 2 + (4, 13)
        assert list(tmp_path.iterdir()) == []  # a file without a name cannot be left over
        store.clear()
        assert (list(store), store.size) == ([], 0)


def test_a_worker_sends_segments_as_they_are_complete(tmp_path, video, monkeypatch):
    monkeypatch.setattr(frame_store, "MEMORY_BYTES", 100)
    worker = DecodeWorker(FrameSettings(segment_seconds=5), 20, tmp_path)
    try:
        found = [(list(one.jpegs), one.times) for one in worker.decode(video)]
        assert found == [(one.jpegs, one.times) for one in segments_of(video, segment_seconds=5)]
        decoding = worker.decode(video)
        next(decoding)
        decoding.close()  # the process must not send the rest as the answer for the next video
        assert [one.times for one in worker.decode(video)] == [times for _, times in found]
    finally:
        worker.stop()
