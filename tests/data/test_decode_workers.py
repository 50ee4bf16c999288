"""A decoding process whose reads wait or fail."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, SampleDecoder
from motionmae.data.decode_workers import WorkerDecoder, WorkerFailed
from motionmae.data.open_shards import open_reader
from motionmae.data.shared_buffers import SharedBufferPool
from motionmae.errors import UserError
from tests.data.loading import steps
from tests.data.made_shards import frame_numbers, make_shards

CLIP = ClipConfig(frames=2, size=16, stride=1)


class BlockedReader:
    """Reader that reads sample 0 only when a file exists."""

    def __init__(self, folder: Path):
        self.reader, self.go_on = open_reader(folder), folder / "go_on"
        self.manifest, self.read_meta = self.reader.manifest, self.reader.read_meta
        self.read_flow, self.close = self.reader.read_flow, self.reader.close

    def read_frames(self, sample_id, frame_indices):
        while sample_id == 0 and not self.go_on.exists():
            time.sleep(0.01)
        return self.reader.read_frames(sample_id, frame_indices)


def open_blocked(folder: Path) -> SampleDecoder:
    return SampleDecoder(BlockedReader(folder), DataConfig(), CLIP)


@pytest.fixture
def folder(tmp_path):
    make_shards(tmp_path / "s", (4,), frames=2)
    return tmp_path / "s"


def test_a_process_decodes_one_clip_while_it_waits_for_the_frames_of_another(folder):
    decoder = WorkerDecoder(partial(open_blocked, folder), workers=1)
    pool = SharedBufferPool((2, 2, 16, 16, 3), np.uint8)
    clips = pool.take()
    requests = [ClipRequest(row, 0, 0, row, 0) for row in range(2)]
    with ThreadPoolExecutor(2) as threads:
        blocked, other = (threads.submit(decoder.decode_into, [one], clips, None) for one in requests)
        try:
            assert other.result(30) == [load_samples(folder)[1]]
            assert frame_numbers(clips.array[1]) == [0, 1]
            assert not blocked.done()
        finally:
            (folder / "go_on").touch()
        assert blocked.result(60) == [load_samples(folder)[0]]
        assert frame_numbers(clips.array[0]) == [0, 1]
    decoder.close()


class FailingReader(BlockedReader):
    """Reader that meets a mistake of the user in sample 0, and a bug in the others."""

    def read_frames(self, sample_id, frame_indices):
        raise KeyError("a bug") if sample_id else UserError("the disk is missing: mount it")


def open_failing(folder: Path) -> SampleDecoder:
    return SampleDecoder(FailingReader(folder), DataConfig(), CLIP)


def test_a_mistake_of_the_user_arrives_as_its_sentence_and_a_bug_with_its_traceback(folder):
    decoder = WorkerDecoder(partial(open_failing, folder), workers=1)
    pool = SharedBufferPool((2, 2, 16, 16, 3), np.uint8)
    clips = pool.take()
    mistake, bug = (ClipRequest(0, 0, 0, sample, 0) for sample in range(2))
    with pytest.raises(UserError, match=r"^the disk is missing: mount it$"):
        decoder.decode_into([mistake], clips, None)
    with pytest.raises(WorkerFailed, match=r"(?s)^in a decoding process:.* in read_frames.*KeyError: 'a bug'"):
        decoder.decode_into([bug], clips, None)
    decoder.close()


class UnsteadyReader(BlockedReader):
    """Reader whose reads take from 0 to 40 ms."""

    def read_frames(self, sample_id, frame_indices):
        time.sleep(random.random() * 0.04)
        return self.reader.read_frames(sample_id, frame_indices)


def open_unsteady(data: DataConfig, clip: ClipConfig) -> SampleDecoder:
    return SampleDecoder(UnsteadyReader(Path(data.shards)), data, clip)


@pytest.mark.parametrize("workers", [0, 2])
def test_reads_of_any_length_leave_the_order(folder, monkeypatch, workers):
    make_shards(folder, (7, 9, 8), frames=3)
    options = {"batch": 6, "micro_batch_size": 3, "threads": 3}
    expected = steps(folder, 0, 6, **options)

    def open_decoder(data, clip, manifest):
        open_one = partial(open_unsteady, data, clip)
        return WorkerDecoder(open_one, workers) if workers else open_one()

    monkeypatch.setattr("motionmae.data.loader.open_decoder", open_decoder)
    assert steps(folder, 0, 6, **options) == expected


def load_samples(folder):
    reader = open_reader(folder)
    return [reader.read_meta(sample) for sample in range(reader.manifest.samples)]
