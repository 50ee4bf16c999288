import json
import os

import pytest

from motionmae.data.shards.format import ENCODINGS, ShardWriter, index_path
from motionmae.data.shards.stored_samples import StoredSamples


def write(path, encoding="jpeg", count=3):
    meta = {"label": 1, "class_name": "c", "fps": 25.0, "stride": 1, "height": 2, "width": 2, "windows": [0]}
    with ShardWriter(path, encoding) as shard:
        for number in range(count):
            frames = [bytes([number, frame]) * 40 for frame in range(number + 1)]
            times = [frame / 25 for frame in range(len(frames))]
            more = {"source": f"{number}.mp4", "frames": len(frames), "times": times}
            shard.write(f"{number:08d}", frames, meta | more, frames if number == 1 else [])
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_copied_samples_make_the_same_bytes(tmp_path, encoding):
    shard = write(tmp_path / "a.tar", encoding)
    content, index = shard.read_bytes(), index_path(shard).read_bytes()
    index_path(shard).unlink()
    old = StoredSamples(shard)
    assert old.is_whole
    with ShardWriter(shard, encoding) as new:
        for number in range(3):
            sample = old.read(f"{number:08d}")
            assert sample.intact
            assert sample.frame_bytes == 80 * (number + 1)
            new.copy(f"{number:08d}", sample.members, sample.meta)
    assert (shard.read_bytes(), index_path(shard).read_bytes()) == (content, index)


def test_a_truncated_shard_gives_the_samples_before_the_cut(tmp_path):
    shard = write(tmp_path / "a.tar")
    columns = json.loads(index_path(shard).read_text())["columns"]
    os.truncate(shard, columns["jpgs_offset"][2] + 10)
    old = StoredSamples(shard)
    assert not old.is_whole
    assert [old.read(f"{number:08d}") is not None for number in range(3)] == [True, True, False]
    assert [old.may_hold(f"{number:08d}") for number in range(4)] == [True, True, True, False]
    index_path(shard).unlink()
    assert StoredSamples(shard).may_hold("00000003")  # without its index nobody knows


def test_a_wrong_bit_of_a_frame_is_known(tmp_path):
    shard = write(tmp_path / "a.tar")
    columns = json.loads(index_path(shard).read_text())["columns"]
    content = bytearray(shard.read_bytes())
    content[columns["jpgs_offset"][1] + 20] ^= 1
    shard.write_bytes(content)
    old = StoredSamples(shard)
    assert [old.read(f"{number:08d}").intact for number in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    "content", [b"", b"no tar at all" * 100, bytes(1024), b"[]" * 5000], ids=["empty", "text", "zeros", "json"]
)
def test_what_is_no_shard_holds_no_sample(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert StoredSamples(tmp_path / "a.tar").read("00000000") is None


@pytest.mark.parametrize("meta", [b"[" * 300, b"{}", b"5", b"null", b'{"frames": "x"}', b"\xff"])
def test_a_sample_with_a_damaged_description_is_not_read(tmp_path, meta):
    shard = write(tmp_path / "a.tar")
    columns = json.loads(index_path(shard).read_text())["columns"]
    content = bytearray(shard.read_bytes())
    offset, size = columns["json_offset"][1], columns["json_size"][1]
    content[offset : offset + size] = meta.ljust(size)[:size]
    shard.write_bytes(content)
    old = StoredSamples(shard)
    assert [old.read(f"{number:08d}") is not None for number in range(3)] == [True, False, True]
    assert old.may_hold("00000001")


def test_windows_that_an_index_may_not_have_are_damage(tmp_path):
    shard = write(tmp_path / "a.tar")
    shard.write_bytes(shard.read_bytes().replace(b'"windows":[0]', b'"windows":[5]', 1))
    old = StoredSamples(shard)
    assert [old.read(f"{number:08d}") is not None for number in range(3)] == [False, True, True]


def test_an_absent_shard_holds_nothing(tmp_path):
    old = StoredSamples(tmp_path / "a.tar")
    assert (old.exists, old.is_whole, old.read("0"), old.may_hold("0")) == (False, True, None, False)


def test_an_index_without_its_shard_holds_nothing(tmp_path):
    shard = write(tmp_path / "a.tar")
    shard.unlink()
    assert not StoredSamples(shard).may_hold("00000000")
