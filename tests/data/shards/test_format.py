import json
import os
import resource
import signal
import subprocess
import sys
import tarfile

import pytest
import webdataset

from data_tools.verify import verify_shard
from motionmae.data.shards import publish
from motionmae.data.shards.errors import Reason
from motionmae.data.shards.format import (
    META_KEYS,
    ShardWriter,
    index_path,
    load_index,
    shard_is_complete,
)
from motionmae.errors import UserError
from tests.data.made_shards import flip_byte, meta, picture, unpack_frames


def write(path, samples=3, frames=4):
    jpegs = [picture(number, 16, 24) for number in range(frames)]
    with ShardWriter(path) as shard:
        for number in range(samples):
            shard.write(f"{number:08d}", jpegs, meta(frames, 16, 24, label=number))
    return shard.entry


def test_webdataset_opens_the_shard_unchanged(tmp_path):
    write(tmp_path / "a.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002"]
    for number, sample in enumerate(samples):
        assert unpack_frames(sample["jpgs"]) == [picture(frame, 16, 24) for frame in range(4)]
        assert json.loads(sample["json"]) == meta(4, 16, 24, label=number, windows=[0])


def test_index_names_the_place_of_every_member(tmp_path):
    write(tmp_path / "a.tar")
    entry, columns = load_index(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    assert (entry.samples, entry.bytes) == (3, len(content))
    with tarfile.open(tmp_path / "a.tar") as tar:
        for row, key in enumerate(columns["key"]):
            for member in ("crcs", "jpgs", "json"):
                start, size = columns[f"{member}_offset"][row], columns[f"{member}_size"][row]
                assert content[start : start + size] == tar.extractfile(f"{key}.{member}").read()


def test_the_tar_is_what_tarfile_makes_of_its_members(tmp_path):
    path, again = tmp_path / "a.tar", tmp_path / "again.tar"
    write(path)
    with tarfile.open(path) as shard, tarfile.open(again, "w", format=tarfile.USTAR_FORMAT) as other:
        for member in shard:
            other.addfile(member, shard.extractfile(member))
    assert again.read_bytes() == path.read_bytes()


def test_bytes_depend_on_the_samples_alone(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.tar")
        os.utime(tmp_path / folder)
    for name in ("a.tar", "a.idx.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with tarfile.open(tmp_path / "one" / "a.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}


def test_an_exception_leaves_no_shard(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "a.tar") as shard:
            shard.write("0", [picture(0, 16, 24)], meta(1, 16, 24))
            raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_shard_and_the_next_one_makes_the_same_bytes(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from motionmae.data.shards.format import ShardWriter\n"
        "from tests.data.made_shards import meta, picture\n"
        "with ShardWriter(Path(sys.argv[1])) as shard:\n"
        "    shard.write('00000000', [picture(0, 16, 24)], meta(1, 16, 24))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path) or "."}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.tar")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not shard_is_complete(tmp_path / "a.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.tmp"]
    assert write(tmp_path / "a.tar").sha256 == write(tmp_path / "b.tar").sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx.json", "a.tar", "b.idx.json", "b.tar"]
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_interrupted_rewrite_leaves_the_old_shard(tmp_path, monkeypatch):
    entry = write(tmp_path / "a.tar")

    def die(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "write_atomically", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.tar")
    assert shard_is_complete(tmp_path / "a.tar", entry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx.json", "a.tar"]


def test_a_full_disk_leaves_no_shard(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))  # the kernel refuses to write further
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "a.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "changes", "jpegs", "flow", "message"),
    [
        ("a.b", {}, 2, 0, "letters"),
        ("", {}, 2, 0, "letters"),
        ("first", {}, 2, 0, "twice"),
        ("k", {"frames": 3}, 2, 0, "2 pictures"),
        ("k", {"times": [0.0]}, 2, 0, "1 times"),
        ("k", {"frames": 0, "times": []}, 0, 0, "at least 1"),
        ("k", {}, 2, 1, "1 flow fields"),
        ("k", {"windows": [1]}, 2, 0, "windows"),
        ("k", {"windows": [0, 2]}, 2, 0, "windows"),
        ("k", {"windows": [0, 1, 1]}, 2, 0, "windows"),
    ],
)
def test_the_writer_refuses_what_no_reader_could_use(tmp_path, key, changes, jpegs, flow, message):
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.write("first", [picture(0, 16, 24)], meta(1, 16, 24))
        with pytest.raises(UserError, match=message):
            shard.write(key, [picture(0, 16, 24)] * jpegs, meta(2, 16, 24) | changes, [b"f"] * flow)


@pytest.mark.parametrize("name", META_KEYS)
def test_the_writer_names_what_a_meta_lacks(tmp_path, name):
    lacking = meta(1, 16, 24)
    del lacking[name]
    with ShardWriter(tmp_path / "a.tar") as shard, pytest.raises(UserError, match=f"lacks {name}"):
        shard.write("0", [picture(0, 16, 24)], lacking)


class TestVerify:
    @pytest.fixture
    def shard(self, tmp_path):
        self.entry = write(tmp_path / "a.tar")
        return tmp_path / "a.tar"

    def reasons(self, shard, entry=None):
        return [fault.reason for fault in verify_shard(shard, entry)]

    def test_good(self, shard):
        assert verify_shard(shard) == verify_shard(shard, self.entry) == []
        assert shard_is_complete(shard, self.entry)
        assert load_index(shard, self.entry)[0] == self.entry

    def test_flipped_byte_names_the_sample(self, shard):
        _, columns = load_index(shard)
        flip_byte(shard, columns["jpgs_offset"][1] + 100)
        (fault,) = verify_shard(shard, self.entry)
        assert (fault.reason, fault.where) == (Reason.CHECKSUM, "a.tar:00000001")

    def test_flipped_byte_outside_of_pictures(self, shard):
        flip_byte(shard, 0)
        (fault,) = verify_shard(shard)
        assert (fault.reason, fault.where) == (Reason.CHECKSUM, "a.tar")

    def test_truncated(self, shard):
        os.truncate(shard, 5000)
        assert self.reasons(shard) == [Reason.TRUNCATED_SHARD]
        assert not shard_is_complete(shard)

    def test_missing(self, shard):
        shard.unlink()
        assert self.reasons(shard) == [Reason.MISSING_SHARD]
        assert not shard_is_complete(shard)

    def test_missing_index(self, shard):
        index_path(shard).unlink()
        assert self.reasons(shard) == [Reason.MISSING_SHARD]
        assert not shard_is_complete(shard)

    def test_longer(self, shard):
        with shard.open("ab") as file:
            file.write(b"more")
        assert self.reasons(shard) == [Reason.REPLACED_SHARD]

    def test_replaced_with_its_index(self, shard):
        write(shard, samples=2)
        assert self.reasons(shard) == []
        assert self.reasons(shard, self.entry) == [Reason.REPLACED_SHARD]

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"format_version": 2}', b"\xff\xfe"])
    def test_garbage_index(self, shard, content):
        index_path(shard).write_bytes(content)
        assert self.reasons(shard) == [Reason.BAD_INDEX]

    def test_index_with_a_short_column(self, shard):
        content = json.loads(index_path(shard).read_text())
        content["columns"]["fps"].pop()
        index_path(shard).write_text(json.dumps(content))
        assert self.reasons(shard) == [Reason.BAD_INDEX]

    def test_other_format_version(self, shard):
        index_path(shard).write_text(index_path(shard).read_text().replace('"format_version":2', '"format_version":7'))
        with pytest.raises(UserError, match=r"format version 7.*reads version 2.*make the shards again"):
            verify_shard(shard)
