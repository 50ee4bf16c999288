"""Remote shards with a real HTTP server: the cache, its sharing between processes, its limit, the loader."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pytest

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import read_clip
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.remote.cache import ShardCache, default_folder
from motionmae.errors import UserError
from tests.data.made_shards import make_shards, picture
from tests.data.shard_server import serving
from tests.flushes import record

COUNTS = (3, 1, 4, 2, 5, 3, 2, 4)
FRAMES = 8
CLIP = ClipConfig(frames=2, size=16, stride=1)
ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("short_delays")


@pytest.fixture
def folder(tmp_path):
    make_shards(tmp_path / "s", COUNTS, FRAMES)
    return tmp_path / "s"


@pytest.fixture
def data(tmp_path, server):
    return DataConfig(shards=server.url, cache=str(tmp_path / "cache"), remote_retries=2, remote_timeout=5)


def changed(data, **changes):
    return DataConfig(**{**vars(data), **changes})


def tars(server):
    return [name for name, _ in server.requests if name.endswith(".tar")]


def kept(data):
    """Names of the whole shards in the cache, without their digests."""
    return sorted(path.name.partition("-")[2] for path in Path(data.cache).glob("*.tar"))


def taken(data):
    found = 0
    for path in Path(data.cache).iterdir():
        with suppress(FileNotFoundError):  # renamed or removed meanwhile
            found += path.stat().st_size
    return found


def test_samples_are_those_of_the_folder(folder, server, data):
    assert load_manifest(server.url, data) == load_manifest(folder)
    remote, local = open_reader(server.url, data=data), open_reader(folder)
    for sample in range(sum(COUNTS)):
        assert remote.read_meta(sample) == local.read_meta(sample)
        assert remote.read_json(sample) == local.read_json(sample)
        assert remote.read_frames(sample, [5, 1]) == [picture(5, 16, 24), picture(1, 16, 24)]
    assert read_clip(remote, 7, CLIP).equal(read_clip(local, 7, CLIP))
    assert sorted(tars(server)) == sorted(set(tars(server)))


def test_only_what_is_read_is_fetched_and_once(server, data):
    for _ in range(2):
        open_reader(server.url, data=data).read_frames(0, [0])
    assert tars(server) == ["toy-000000.tar"]


def test_a_shard_is_flushed_before_it_gets_its_name(folder, server, data, monkeypatch):
    reader = open_reader(server.url, data=data)
    done = record(Path(data.cache), monkeypatch)
    reader.read_frames(0, [0])
    (shard,) = Path(data.cache).glob("*.tar")
    part = f"{shard.name}.{(folder / 'toy-000000.tar').stat().st_size}.part"
    assert done[-3:] == [("fsync", part), ("rename", shard.name), ("fsync", ".")]


def test_two_urls_of_equal_names_do_not_meet(tmp_path, server, data):
    make_shards(tmp_path / "other", COUNTS, FRAMES - 1)
    with serving(tmp_path / "other") as second:
        assert open_reader(second.url, data=data).read_meta(0).frames == FRAMES - 1
        assert open_reader(server.url, data=data).read_meta(0).frames == FRAMES
    assert kept(data) == ["toy-000000.tar"] * 2


def test_shards_made_again_at_the_same_url_are_fetched_again(folder, server, data):
    open_reader(server.url, data=data).read_frames(0, [0])
    make_shards(folder, COUNTS, FRAMES - 1)
    assert open_reader(server.url, data=data).read_meta(0).frames == FRAMES - 1


def test_many_threads_fetch_a_shard_once(server, data):
    server.faults["toy-000002.tar"] = [("slow", 0.3)]
    reader = open_reader(server.url, data=data)
    threads = [threading.Thread(target=reader.read_frames, args=(4, [0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tars(server) == ["toy-000002.tar"]


def processes(code, *arguments, number=2):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for _ in range(number)]


def test_processes_that_share_a_cache_fetch_each_shard_once(server, data):
    for number in range(len(COUNTS)):
        server.faults[f"toy-{number:06d}.tar"] = [("slow", 0.1)]
    code = """
        import sys
        from motionmae.config import DataConfig
        from motionmae.data.open_shards import open_reader
        reader = open_reader(sys.argv[1], data=DataConfig(cache=sys.argv[2]))
        print([len(reader.read_frames(sample, [0, 3])) for sample in range(reader.manifest.samples)])
    """
    for process in processes(code, server.url, data.cache, number=3):
        out, errors = process.communicate(timeout=300)
        assert (out, process.returncode) == (f"{[2] * sum(COUNTS)}\n", 0), errors
    assert sorted(tars(server)) == [f"toy-{number:06d}.tar" for number in range(len(COUNTS))]


def test_a_killed_download_is_continued_by_the_next_process(folder, server, data):
    server.faults["toy-000000.tar"] = [("stall", 5000)]
    code = """
        import sys
        from motionmae.config import DataConfig
        from motionmae.data.open_shards import open_reader
        open_reader(sys.argv[1], data=DataConfig(cache=sys.argv[2])).read_meta(0)
    """
    (process,) = processes(code, server.url, data.cache, number=1)
    for _ in range(600):
        if any(path.stat().st_size == 5000 for path in Path(data.cache).glob("*.part")):
            break
        threading.Event().wait(0.05)
    process.kill()
    process.communicate()
    assert open_reader(server.url, data=data).read_frames(0, [0]) == [picture(0, 16, 24)]
    assert server.starts("toy-000000.tar") == [0, 5000]
    assert not list(Path(data.cache).glob("*.part"))


class TestLimit:
    @pytest.fixture
    def small(self, folder, data):
        """Room for about half of the shards."""
        whole = sum(path.stat().st_size for path in folder.glob("toy-*"))
        return changed(data, cache_gb=whole / 2 / 1e9)

    def test_the_least_recently_used_make_way(self, folder, server, small):
        manifest = load_manifest(folder)
        cache = ShardCache(server.url, small)
        for number, entry in enumerate(manifest.shards):
            cache.open(entry).file.close()
            assert taken(small) <= small.cache_gb * 1e9
            assert entry.name in kept(small)
            if number:  # used again and again: stays
                cache.prefetch(manifest.shards[0])
        assert len(kept(small)) < len(COUNTS)
        assert "toy-000000.tar" in kept(small)
        assert "toy-000001.tar" not in kept(small)
        assert server.starts("toy-000000.tar") == [0]

    def test_a_shard_in_use_stays(self, folder, server, small):
        manifest = load_manifest(folder)
        cache = ShardCache(server.url, small)
        held = cache.open(manifest.shards[0]).file
        path = Path(held.name)
        for entry in manifest.shards[1:] * 2:
            ShardCache(server.url, small).open(entry).file.close()
            assert taken(small) <= small.cache_gb * 1e9
        assert path.exists()
        held.close()
        for entry in manifest.shards[1:]:
            cache.open(entry).file.close()
        assert not path.exists()

    def test_shards_in_use_that_leave_no_room_are_named(self, folder, server, small):
        manifest = load_manifest(folder)
        cache, held = ShardCache(server.url, small), []
        with pytest.raises(UserError, match=r"has no room for .*toy-.*shards in use .*increase data\.cache_gb"):
            held.extend(cache.open(entry).file for entry in manifest.shards)
        assert not list(Path(small.cache).glob("*.part"))
        assert all(Path(file.name).exists() for file in held)

    def test_leftovers_of_killed_processes_make_way_and_strangers_stay(self, folder, server, small):
        manifest = load_manifest(folder)
        cache = ShardCache(server.url, small)
        leftover = Path(small.cache) / f"{'a' * 32}-old.tar.{int(small.cache_gb * 1e9)}.part"
        leftover.write_bytes(b"half")
        stranger = Path(small.cache) / "thesis.tar"
        stranger.write_bytes(b"x" * 100_000)
        os.utime(stranger, (0, 0))
        cache.open(manifest.shards[0]).file.close()
        assert not leftover.exists()
        assert stranger.exists()

    def test_a_reader_keeps_within_the_limit(self, server, small):
        reader = open_reader(server.url, data=small)
        for sample in [*range(sum(COUNTS)), 0]:
            assert reader.read_frames(sample, [2]) == [picture(2, 16, 24)]
            assert taken(small) <= small.cache_gb * 1e9

    def test_a_limit_below_two_windows_is_refused(self, server, small):
        with pytest.raises(UserError, match=r"data\.cache_gb=.* is too small .* data\.shuffle_window_shards=64"):
            ClipLoader(small, CLIP, seed=0, batch=4, micro_batch_size=2)


def test_a_shard_cut_short_in_the_cache_is_fetched_again(server, data):
    open_reader(server.url, data=data).read_meta(0)
    (path,) = Path(data.cache).glob("*.tar")
    os.truncate(path, 100)
    assert open_reader(server.url, data=data).read_frames(0, [1]) == [picture(1, 16, 24)]
    assert server.starts("toy-000000.tar") == [0, 0]


class TestFolder:
    def test_it_is_private(self, server, data):
        open_reader(server.url, data=data).read_meta(0)
        assert Path(data.cache).stat().st_mode & 0o777 == 0o700
        (path,) = Path(data.cache).glob("*.tar")
        assert path.stat().st_mode & 0o077 == 0

    def test_its_default_is_one_a_user(self, monkeypatch, tmp_path, server, data):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
        assert default_folder() == tmp_path / "node" / f"motionmae-cache-{os.getuid()}"
        open_reader(server.url, data=changed(data, cache="")).read_meta(0)
        assert list(default_folder().glob("*.tar"))

    def test_variables_are_the_nodes(self, monkeypatch, tmp_path, server, data):
        monkeypatch.setenv("NODE_DISK", str(tmp_path / "nvme"))
        open_reader(server.url, data=changed(data, cache="$NODE_DISK/cache")).read_meta(0)
        assert list((tmp_path / "nvme" / "cache").glob("*.tar"))

    def test_one_that_others_can_write_to_is_refused(self, tmp_path, server, data):
        Path(data.cache).mkdir()
        Path(data.cache).chmod(0o777)
        with pytest.raises(UserError, match="only you can write to"):
            ShardCache(server.url, data)

    def test_a_link_is_refused(self, tmp_path, server, data):
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        Path(data.cache).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="only you can write to"):
            ShardCache(server.url, data)


class TestLoader:
    @staticmethod
    def steps(data, number, first=0, rank=0, world=1):
        found = []
        with ClipLoader(data, CLIP, seed=3, batch=8, micro_batch_size=2, rank=rank, world=world) as loader:
            stream = loader.batches(first)
            for _ in range(number * loader.accumulation):
                batch = next(stream)
                found.append((batch.samples.tolist(), batch.seeds.tolist(), batch.clips.numpy().tobytes()))
        return found

    def test_batches_are_those_of_the_folder(self, folder, server, data):
        local = changed(data, shards=str(folder), shuffle_window_shards=2)
        remote = changed(data, shuffle_window_shards=2)
        assert self.steps(remote, 7) == self.steps(local, 7)
        for rank in range(2):
            assert self.steps(remote, 7, 2, rank, 2) == self.steps(local, 7, 2, rank, 2)
        assert len(tars(server)) == len(COUNTS)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_are_the_same_when_the_cache_is_small(self, folder, server, data, workers):
        make_shards(folder, (24,) * 6)
        size = sum(path.stat().st_size for path in folder.glob("toy-000000*"))
        small = changed(data, shuffle_window_shards=1, cache_gb=2.1 * size / 1e9, workers=workers, remote_retries=12)
        local = changed(data, shards=str(folder), shuffle_window_shards=1)
        assert self.steps(small, 36) == self.steps(local, 36)
        assert taken(small) <= small.cache_gb * 1e9

    @pytest.mark.long
    def test_ranks_that_share_a_small_cache(self, folder, server, data):
        make_shards(folder, (24,) * 6)
        size = sum(path.stat().st_size for path in folder.glob("toy-000000*"))
        code = """
            import sys
            from motionmae.config import ClipConfig, DataConfig
            from motionmae.data.remote import download
            from motionmae.data.loader import ClipLoader
            download.FIRST_DELAY = 0.1
            url, cache, limit, rank = sys.argv[1:]
            data = DataConfig(shards=url, cache=cache, cache_gb=float(limit), shuffle_window_shards=1, prefetch=2)
            clip = ClipConfig(frames=2, size=16, stride=1)
            with ClipLoader(data, clip, seed=3, batch=8, micro_batch_size=2, rank=int(rank), world=2) as loader:
                stream = loader.batches(0)
                for _ in sys.stdin:  # the ranks of a run keep step with each other
                    print(sum((next(stream).samples.tolist() for _ in range(loader.accumulation)), []), flush=True)
        """
        limit = 2.5 * size / 1e9
        ranks = [processes(code, server.url, data.cache, str(limit), rank, number=1)[0] for rank in "01"]
        found = [[], []]
        for _ in range(36):
            for process in ranks:
                process.stdin.write("\n")
                process.stdin.flush()
            for rank, process in enumerate(ranks):
                found[rank] += json.loads(process.stdout.readline() or "[]")
            assert taken(data) <= limit * 1e9
        for rank, process in enumerate(ranks):
            _, errors = process.communicate(timeout=300)
            local = self.steps(changed(data, shards=str(folder), shuffle_window_shards=1), 36, rank=rank, world=2)
            assert found[rank] == [sample for samples, _, _ in local for sample in samples], errors
        assert 12 <= len(tars(server)) <= 18  # six shards, two epochs and what is fetched ahead

    def test_the_window_and_the_next_are_fetched_ahead_and_no_more(self, server, data):
        ahead = changed(data, shuffle_window_shards=2, prefetch=1, threads=1)
        with ClipLoader(ahead, CLIP, seed=3, batch=2, micro_batch_size=2) as loader:
            next(loader.batches(0))
            for _ in range(100):
                if len(kept(ahead)) == 4:
                    break
                threading.Event().wait(0.05)
            threading.Event().wait(0.3)
            order = loader.order.pass_of(0, 0)
            positions, first = order.window(0)
            _, second = order.window(positions.stop)
        assert kept(ahead) == sorted(f"toy-{number:06d}.tar" for number in first + second)

    def test_closing_does_not_wait_for_a_stalled_server(self, server, data):
        for number in range(len(COUNTS)):
            server.faults[f"toy-{number:06d}.tar"] = [("stall", 100)] * 9
        loader = ClipLoader(changed(data, remote_timeout=1), CLIP, seed=0, batch=8, micro_batch_size=8)
        stream = loader.batches(0)
        failures = []

        def read():
            try:
                next(stream)
            except CancelledError as error:
                failures.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        threading.Event().wait(0.3)
        start = time.monotonic()
        loader.close()
        thread.join(20)
        assert failures
        assert time.monotonic() - start < 20  # the retries of a loader that is not closed take 37 s
