import gc
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from motionmae.data.open_shards import open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import index_path, load_index
from motionmae.errors import UserError
from tests.data.made_shards import flip_byte, make_shards, picture

COUNTS = (3, 1, 4)
FRAMES = 8


@pytest.fixture
def folder(tmp_path):
    make_shards(tmp_path / "s", COUNTS, FRAMES)
    return tmp_path / "s"


def reason_of(call):
    with pytest.raises(CorruptSample) as caught:
        call()
    return caught.value.reason


def place(folder, shard, member, row=0):
    return load_index(folder / f"toy-{shard:06d}.tar")[1][f"{member}_offset"][row]


def test_meta_and_json_of_every_sample(folder):
    reader = open_reader(folder)
    for sample in range(sum(COUNTS)):
        meta = reader.read_meta(sample)
        assert (meta.label, meta.key, meta.frames, meta.height, meta.width) == (sample, f"{sample:08d}", FRAMES, 16, 24)
        assert (meta.fps, meta.stride, meta.windows, meta.has_flow) == (25.0, 1, (0,), False)
        assert reader.read_json(sample)["label"] == sample


@pytest.mark.parametrize("frames", [[0], [7, 0], [1, 3, 5, 7], [2, 3, 4], [5, 5, 6, 5], list(range(FRAMES))])
def test_frames_in_the_asked_order(folder, frames):
    assert open_reader(folder).read_frames(5, frames) == [picture(number, 16, 24) for number in frames]


def test_only_the_asked_frames_are_read(folder, monkeypatch):
    reader = open_reader(folder)
    reader.read_meta(0)
    sizes = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or pread(file, size, offset))
    frames = reader.read_frames(0, [2, 6, 6, 3])
    assert sorted(sizes[1:]) == sorted([len(frames[0]) + len(frames[3]), len(frames[1])])  # 2 and 3 are neighbours
    assert sizes[0] < 1536 + 4 * (2 * FRAMES + 1)


@pytest.mark.parametrize("sample", [-1, sum(COUNTS)])
def test_no_such_sample(folder, sample):
    with pytest.raises(UserError, match="holds samples 0 to 7"):
        open_reader(folder).read_meta(sample)


def test_a_flipped_byte_is_found_in_the_frame_that_holds_it(folder):
    start = place(folder, 0, "jpgs", row=1)
    flip_byte(folder / "toy-000000.tar", start + 4 * (FRAMES + 1) + 60)  # in frame 0 of sample 1
    reader = open_reader(folder)
    assert reason_of(lambda: reader.read_frames(1, [0, 1])) == Reason.CHECKSUM
    assert reader.read_frames(1, [1, 2]) == [picture(1, 16, 24), picture(2, 16, 24)]
    assert reader.read_frames(0, [0]) == [picture(0, 16, 24)]


@pytest.mark.parametrize("member", ["crcs", "jpgs"])
@pytest.mark.parametrize("byte", range(8, 16))
def test_a_flipped_byte_in_the_tables_is_found(folder, member, byte):
    flip_byte(folder / "toy-000000.tar", place(folder, 0, member) + byte)
    assert reason_of(lambda: open_reader(folder).read_frames(0, range(FRAMES))) == Reason.CHECKSUM


def test_truncated_shard(folder):
    os.truncate(folder / "toy-000002.tar", 2000)
    assert reason_of(lambda: open_reader(folder).read_meta(7)) == Reason.TRUNCATED_SHARD


def test_shard_truncated_while_open(folder):
    reader = open_reader(folder)
    reader.read_frames(7, [0])
    os.truncate(folder / "toy-000002.tar", 2000)
    assert reason_of(lambda: reader.read_frames(7, [0])) == Reason.TRUNCATED_SHARD


def test_shard_missing_at_start(folder):
    (folder / "toy-000001.tar").unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards .* are missing, the first is toy-000001.tar"):
        open_reader(folder)


@pytest.mark.parametrize("what", ["shard", "index"])
def test_shard_gone_later(folder, what):
    reader = open_reader(folder)
    shard = folder / "toy-000001.tar"
    (shard if what == "shard" else index_path(shard)).unlink()
    assert reason_of(lambda: reader.read_meta(3)) == Reason.MISSING_SHARD


def test_replaced_shard(folder, tmp_path):
    make_shards(tmp_path / "other", (3,), FRAMES - 1)
    reader = open_reader(folder)
    for name in ("toy-000000.tar", "toy-000000.idx.json"):
        (tmp_path / "other" / name).replace(folder / name)
    assert reason_of(lambda: reader.read_frames(0, [0])) == Reason.REPLACED_SHARD


def test_no_byte_of_an_index_may_change(folder):
    index = folder / "toy-000000.idx.json"
    reasons = set()
    for byte in range(index.stat().st_size):
        flip_byte(index, byte)
        reasons.add(reason_of(lambda: open_reader(folder).read_frames(0, [0])))
        flip_byte(index, byte)
    assert reasons == {Reason.BAD_INDEX, Reason.REPLACED_SHARD}  # the latter where it names another sha256
    assert open_reader(folder).read_frames(0, [0]) == [picture(0, 16, 24)]


def test_few_files_stay_open(tmp_path):
    make_shards(tmp_path / "s", (2,) * 10)
    reader = open_reader(tmp_path / "s", open_shards=3)
    gc.collect()  # or it would close files of earlier tests meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    for sample in range(20):
        reader.read_frames(sample, [0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 3
    del reader
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_reader_in_a_reference_cycle_closes_its_files(tmp_path):
    make_shards(tmp_path / "s", (2,) * 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(20):  # the collector frees a cycle in any order, also the file first
            reader: Any = open_reader(tmp_path / "s")
            reader.itself = reader
            for sample in range(16):
                reader.read_frames(sample, [0])
            del reader
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def test_many_threads_read_what_one_reads(tmp_path):
    make_shards(tmp_path / "s", (4,) * 6, FRAMES)
    reader = open_reader(tmp_path / "s", open_shards=2)  # shards are closed under the other threads' hands
    with ThreadPoolExecutor(8) as pool:
        tasks = [(sample * 7 % 24, frame) for sample in range(96) for frame in range(FRAMES)]
        found = pool.map(lambda task: (reader.read_meta(task[0]).label, reader.read_frames(task[0], [task[1]])), tasks)
        assert list(found) == [(sample, [picture(frame, 16, 24)]) for sample, frame in tasks]
