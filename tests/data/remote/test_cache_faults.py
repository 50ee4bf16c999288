"""Remote shards with a failing server, damaged shards or a full disk, and the S3 protocol."""

import hashlib
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.remote import download
from motionmae.data.remote.download import UnreachableError
from motionmae.data.remote.file_systems import check_url
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.errors import UserError
from tests.data.made_shards import flip_byte, make_shards, picture
from tests.data.s3_server import s3_server

COUNTS = (3, 2, 4)
FRAMES = 8
CLIP = ClipConfig(frames=2, size=16, stride=1)
FIRST = "toy-000000.tar"
ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("short_delays")


@pytest.fixture
def folder(tmp_path):
    make_shards(tmp_path / "s", COUNTS, FRAMES)
    return tmp_path / "s"


@pytest.fixture
def data(tmp_path, server):
    return DataConfig(shards=server.url, cache=str(tmp_path / "cache"), remote_retries=2, remote_timeout=1)


def read(data):
    return open_reader(data.shards, data=data).read_frames(0, [3])


def kept(data, pattern):
    return list(Path(data.cache).glob(pattern))


class TestMended:
    """Temporary failures."""

    @pytest.mark.parametrize("fault", [500, 503, 429, 408, ("cut", 0), ("stall", 0)])
    @pytest.mark.parametrize("name", ["manifest.json", "toy-000000.idx.json", FIRST])
    def test_a_failure_is_tried_again(self, server, data, name, fault):
        server.faults[name] = [fault, fault]
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts(name) == [0, 0, 0]

    @pytest.mark.parametrize("kind", ["cut", "stall"])
    def test_a_broken_transfer_goes_on_where_it_ended(self, server, data, kind):
        server.faults[FIRST] = [(kind, 3000), (kind, 2000)]
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts(FIRST) == [0, 3000, 5000]

    def test_failures_do_not_add_up_while_there_is_progress(self, server, data):
        server.faults[FIRST] = [("cut", 1000)] * 8
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts(FIRST) == list(range(0, 9000, 1000))

    def test_a_server_that_ignores_ranges(self, server, data):
        server.faults[FIRST] = [("cut", 3000), "whole"]
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts(FIRST) == [0, 3000, 0]

    def test_a_shard_replaced_in_the_middle_of_its_transfer(self, folder, server, data):
        right = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(bytes(len(right)))
        server.faults[FIRST] = [("cut", 3000), 500, 500, 500]
        with pytest.raises(UnreachableError):
            read(data)
        (folder / FIRST).write_bytes(right)  # its first 3000 bytes are kept from the other file
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts(FIRST)[-2:] == [3000, 0]

    def test_delays_double(self, server, data, monkeypatch):
        monkeypatch.setattr(download, "FIRST_DELAY", 1.0)
        reader = open_reader(data.shards, data=data)
        waited = []
        monkeypatch.setattr(reader.store.remote.closed, "wait", lambda seconds: waited.append(seconds))
        server.faults[FIRST] = [500] * 9
        with pytest.raises(UnreachableError):
            reader.read_meta(0)
        assert waited == [1.0, 2.0]


class TestEnded:
    """Permanent failures end the run with one sentence."""

    @pytest.mark.parametrize("fault", [500, ("cut", 0), ("stall", 0)])
    @pytest.mark.parametrize("name", ["manifest.json", FIRST])
    def test_retries_come_to_an_end(self, server, data, name, fault):
        server.faults[name] = [fault] * 9
        with pytest.raises(UnreachableError, match=rf"{name} could not be read in 3 tries, .*: check") as caught:
            read(data)
        assert "\n" not in str(caught.value)
        assert server.starts(name) == [0, 0, 0]

    def test_what_was_brought_stays_for_the_next_run(self, server, data):
        server.faults[FIRST] = [("cut", 3000), 500, 500, 500]
        with pytest.raises(UnreachableError):
            read(data)
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts(FIRST)[-1] == 3000

    def test_nobody_listens(self, data):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/toy"
        with pytest.raises(UnreachableError, match=r"could not be read in 3 tries"):
            load_manifest(url, data)

    @pytest.mark.parametrize(("status", "message"), [(403, "no access"), (401, "no access"), (410, "HTTP 410")])
    def test_a_refusal_is_not_tried_again(self, server, data, status, message):
        server.faults[FIRST] = [status]
        with pytest.raises(UserError, match=message):
            read(data)
        assert server.starts(FIRST) == [0]

    def test_no_manifest(self, folder, server, data):
        (folder / "manifest.json").unlink()
        with pytest.raises(UserError, match=r"has no manifest\.json"):
            read(data)

    def test_a_disk_that_takes_no_more(self, server, data):
        code = """
            import resource, sys
            from motionmae.config import DataConfig
            from motionmae.data.open_shards import open_reader
            reader = open_reader(sys.argv[1], data=DataConfig(cache=sys.argv[2]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
            reader.read_meta(0)
        """
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", textwrap.dedent(code), data.shards, data.cache]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert "cannot be written (File too large): free space, decrease data.cache_gb" in found.stderr

    def test_a_disk_smaller_than_a_shard(self, tmp_path, server, data):
        disk = tmp_path / "cache"
        disk.mkdir()
        if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k,mode=700", "none", disk]).returncode:
            pytest.skip("may not mount a small disk")
        try:
            with pytest.raises(UserError, match=r"has no room for .* the disk has .* free"):
                read(data)
        finally:
            subprocess.run(["umount", disk], check=True)


class TestCounted:
    """Samples of remote shards that differ from the manifest are corrupt, and the run continues."""

    @staticmethod
    def reason(data):
        reader = open_reader(data.shards, data=data)
        faults = []
        for _ in range(2):
            with pytest.raises(CorruptSample) as caught:
                reader.read_frames(0, [0])
            faults.append(caught.value.reason)
        assert faults[0] == faults[1]
        assert not kept(data, "*.tar")
        assert not kept(data, "*.part")
        return faults[0]

    @pytest.mark.parametrize("name", [FIRST, "toy-000000.idx.json"])
    def test_missing(self, folder, server, data, name):
        (folder / name).unlink()
        assert self.reason(data) == Reason.MISSING_SHARD
        assert server.starts(name) == [0]

    def test_changed_byte(self, folder, server, data):
        flip_byte(folder / FIRST, 5000)
        assert self.reason(data) == Reason.REPLACED_SHARD
        assert server.starts(FIRST) == [0, 0]  # once more, and not for every sample

    def test_truncated(self, folder, server, data):
        os.truncate(folder / FIRST, 3000)
        assert self.reason(data) == Reason.TRUNCATED_SHARD

    def test_longer(self, folder, server, data):
        with (folder / FIRST).open("ab") as file:
            file.write(bytes(10))
        assert self.reason(data) == Reason.REPLACED_SHARD

    def test_replaced_with_its_index(self, folder, tmp_path, server, data):
        make_shards(tmp_path / "other", (3,), FRAMES - 1)
        for name in (FIRST, "toy-000000.idx.json"):
            (tmp_path / "other" / name).replace(folder / name)
        assert self.reason(data) == Reason.REPLACED_SHARD
        assert server.starts(FIRST) == []  # the index told

    def test_index_is_no_index(self, folder, server, data):
        (folder / "toy-000000.idx.json").write_text("<html>")
        assert self.reason(data) == Reason.BAD_INDEX
        assert server.starts("toy-000000.idx.json") == [0, 0]  # once more, and not for every sample
        assert server.starts(FIRST) == []

    def test_index_changed(self, folder, server, data):
        index = folder / "toy-000000.idx.json"
        index.write_text(index.read_text().replace('"label":[0', '"label":[1'))
        assert self.reason(data) == Reason.BAD_INDEX

    def test_index_damaged_in_the_cache(self, server, data):
        assert read(data) == [picture(3, 16, 24)]
        (index,) = kept(data, "*.idx.json")
        index.write_text(index.read_text().replace('"label":[0', '"label":[1'))
        assert read(data) == [picture(3, 16, 24)]
        assert server.starts("toy-000000.idx.json") == [0, 0]

    def test_the_loader_puts_others_in_their_place(self, folder, server, data):
        flip_byte(folder / FIRST, 5000)
        with ClipLoader(data, CLIP, seed=0, batch=9, micro_batch_size=9) as loader:
            batch = next(loader.batches(0))
            assert loader.corrupt == {"replaced_shard": 3}
            assert set(batch.samples.tolist()) == set(range(3, 9))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe://cat x", "give a folder, or a URL of http, https, s3, gs, az"),
        ("file:///data/toy", "give a folder"),
        ("ftp://host/toy", "give a folder"),
        ("s3:///toy", "has no host or bucket"),
        ("gs://me:secret@clips/toy", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://clips/toy?sv=1&sig=secret", "query or fragment"),
        ("http://me:secret@host/toy", "holds a user name"),
        ("https://host/toy?token=secret", "query or fragment"),
    ],
)
def test_urls_that_are_refused(url, message):
    for call in (check_url, load_manifest):
        with pytest.raises(UserError, match=message) as caught:
            call(url)
        assert "me:secret" not in str(caught.value)


@pytest.mark.parametrize("shards", ["pipe:cat x", "pipe://cat x", "gopen://x"])
def test_no_shell_is_run(shards, tmp_path):
    with pytest.raises(ValueError, match=r"does not exist|set a folder"):
        ClipLoader(DataConfig(shards=f"{shards}; touch {tmp_path}/ran"), CLIP, seed=0, batch=1, micro_batch_size=1)
    assert not (tmp_path / "ran").exists()


def test_a_manifest_that_leads_out_of_the_folder_is_refused(folder, server, data):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace(FIRST, "../../x.tar"))
    with pytest.raises(UserError, match=r"a shard with the invalid name '\.\./\.\./x\.tar'"):
        read(data)


class TestS3:
    """With moto's server."""

    @pytest.fixture
    def bucket(self, folder, data, monkeypatch):
        s3fs = pytest.importorskip("s3fs")
        for key, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{key}", value)
        with s3_server() as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            bucket = s3fs.S3FileSystem(skip_instance_cache=True)
            bucket.mkdir("clips")
            bucket.put(f"{folder}/", "clips/toy/", recursive=True)
            yield bucket

    @pytest.fixture
    def s3(self, bucket, data):
        return DataConfig(**{**vars(data), "shards": "s3://clips/toy", "remote_timeout": 10})

    def test_samples_are_those_of_the_folder(self, folder, s3, monkeypatch):
        monkeypatch.setattr(download, "_RANGE_BYTES", 4096)
        remote, local = open_reader(s3.shards, data=s3), open_reader(folder)
        for sample in range(sum(COUNTS)):
            assert remote.read_meta(sample) == local.read_meta(sample)
            assert remote.read_frames(sample, [5]) == local.read_frames(sample, [5])
        found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in kept(s3, "*.tar")}
        assert found == {shard.sha256 for shard in local.manifest.shards}

    def test_missing_truncated_and_changed(self, folder, bucket, s3):
        bucket.rm("clips/toy/toy-000001.tar")
        bucket.pipe("clips/toy/toy-000000.tar", (folder / FIRST).read_bytes()[:3000])
        changed = bytearray((folder / "toy-000002.tar").read_bytes())
        changed[5000] ^= 1
        bucket.pipe("clips/toy/toy-000002.tar", bytes(changed))
        reader = open_reader(s3.shards, data=s3)
        reasons = []
        for sample in (0, 3, 5):
            with pytest.raises(CorruptSample) as caught:
                reader.read_meta(sample)
            reasons.append(caught.value.reason)
        assert reasons == [Reason.TRUNCATED_SHARD, Reason.MISSING_SHARD, Reason.REPLACED_SHARD]

    def test_no_bucket(self, s3):
        with pytest.raises(UserError, match=r"has no manifest\.json"):
            load_manifest("s3://nothing/toy", s3)

    def test_no_endpoint(self, data, monkeypatch):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        for key, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{key}", value)
        with pytest.raises(UnreachableError, match=r"s3://clips/toy/manifest\.json could not be read in 3 tries"):
            load_manifest("s3://clips/toy", data)

    def test_no_credentials(self, data, monkeypatch, tmp_path):
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(key, raising=False)
        for key in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(key, str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(UserError, match=r"no access to s3://clips/toy/manifest\.json"):
            load_manifest("s3://clips/toy", data)
