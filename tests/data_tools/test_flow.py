import zlib

import cv2
import numpy as np
import pytest

from data_tools.decode import FrameSettings, QuarantineReason, UndecodableVideo
from data_tools.frames import FlowRecorder
from motionmae.data.open_shards import load_manifest, open_reader
from tests.data_tools.make_shards.in_process import decode_video
from tests.data_tools.make_shards.runs import make
from tests.data_tools.videos import draw_frames, write_video


def moving_texture(count: int, step: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (64, 400)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([np.roll(texture, step * index, axis=1)[:, 100:196] for index in range(count)])


def means(fields: list[bytes]) -> list[tuple[float, float]]:
    """Median displacement of each field, in stored pixels."""
    shapes = [np.frombuffer(field[:4], "<u2") for field in fields]
    vectors = [
        np.frombuffer(zlib.decompress(field[4:]), "<i2").reshape(*shape, 2) / 64
        for field, shape in zip(fields, shapes, strict=True)
    ]
    return [tuple(np.median(vector, axis=(0, 1))) for vector in vectors]


@pytest.mark.parametrize("distance", [1, 3])
def test_flow_leads_to_the_frame_a_distance_later_and_at_the_end_to_the_last(distance):
    recorder = FlowRecorder(distance)
    for luma in moving_texture(6, 2):
        recorder.add(luma, True)
    wanted = [2.0 * min(distance, 5 - index) for index in range(6)]
    found = means(recorder.finish())
    assert [x for x, _ in found] == pytest.approx(wanted, abs=0.1)
    assert [y for _, y in found] == pytest.approx([0] * 6, abs=0.1)


def test_only_stored_frames_have_flow_but_it_leads_to_any():
    recorder = FlowRecorder(1)
    for index, luma in enumerate(moving_texture(6, 2)):
        recorder.add(luma, index % 2 == 0)
    assert [x for x, _ in means(recorder.finish())] == pytest.approx([2, 2, 2], abs=0.1)


def test_a_video_brings_its_flow_into_the_shard(tmp_path):
    frames = np.repeat(moving_texture(12, 2)[..., None], 3, axis=-1)
    video = write_video(tmp_path / "v" / "a.mp4", frames, options={"crf": "10"})
    decoded = decode_video(video, FrameSettings(stride=2, flow=2))
    assert [x for x, _ in means(decoded.flows)] == pytest.approx([4, 4, 4, 4, 4, 2], abs=0.3)
    assert decoded.jpegs == decode_video(video, FrameSettings(stride=2)).jpegs
    assert make(tmp_path / "v", tmp_path / "out", "--stride", "2", "--flow", "2") == 0
    assert load_manifest(tmp_path / "out").encoder.flow_distance == 2
    stored = open_reader(tmp_path / "out").read_flow(0, range(6))
    assert [bytes(field) for field in stored] == decoded.flows


def test_windows_keep_their_flow(tmp_path):
    video = write_video(tmp_path / "a.mp4", draw_frames(30))
    whole = decode_video(video, FrameSettings(flow=1))
    cut = decode_video(video, FrameSettings(flow=1, clips=2, window=6))
    assert cut.flows == [*whole.flows[:6], *whole.flows[24:]]


def test_pictures_too_small_for_flow_are_refused(tmp_path):
    video = write_video(tmp_path / "a.mp4", draw_frames(3, 8, 8))
    with pytest.raises(UndecodableVideo) as caught:
        decode_video(video, FrameSettings(flow=1))
    assert caught.value.reason is QuarantineReason.NO_FLOW
