import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64

from data_tools.make_beton import write_beton
from data_tools.make_beton.clips import FrameForm
from motionmae.config import ClipConfig, Config, DataConfig
from motionmae.config.resume import check_same_run
from motionmae.data.clip_decoder import ClipRequest, SampleDecoder
from motionmae.data.ffcv.format import ALLOCATION, DESCRIPTOR, FFCV_VERSION, FIELD, HEADER, row_checksum
from motionmae.data.ffcv.reader import BetonReader
from motionmae.data.loader import ClipLoader, check_same_stream
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.sampler import EpochSampler
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.data.shared_buffers import SharedBuffer
from motionmae.errors import UserError
from tests.data.made_shards import (
    flip_byte,
    frame_numbers,
    make_raw_shards,
    make_shards,
    meta,
    needs_ffcv,
    picture,
    unpack_frames,
)

pytestmark = needs_ffcv
COUNTS = (9, 5, 12, 1, 3)  # 30 samples
CLIP = ClipConfig(frames=4, size=32, stride=2)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beton") / "shards"
    make_shards(folder, COUNTS, frames=12, height=48, width=64)
    return folder


def make_beton(shards):
    path = shards.parent / "all.beton"
    write_beton(shards, load_manifest(shards), path)
    return path


@pytest.fixture(scope="module")
def beton(shards):
    return make_beton(shards)


def loader(shards, beton="", batch=10, micro_batch_size=5, rank=0, world=1, **data):
    config = DataConfig(**({"shards": str(shards), "beton": str(beton), "shuffle_window_shards": 2} | data))
    return ClipLoader(config, CLIP, seed=3, batch=batch, micro_batch_size=micro_batch_size, rank=rank, world=world)


def take(ours, number, step=0):
    with ours:
        return list(itertools.islice(ours.batches(step), number))


def names(batches):
    """Sample, label and mask seed of every clip."""
    return [
        row
        for batch in batches
        for row in zip(batch.samples.tolist(), batch.labels.tolist(), batch.seeds.tolist(), strict=True)
    ]


def pixels(batches):
    return np.concatenate([batch.clips.numpy() for batch in batches]).astype(int)


@pytest.fixture(scope="module")
def raw_shards(tmp_path_factory, shards):
    """The frames of ``shards`` as pixels, decoded by libjpeg-turbo."""
    folder = tmp_path_factory.mktemp("raw") / "shards"
    make_raw_shards(folder, open_reader(shards))
    return folder


@pytest.fixture(scope="module")
def raw_beton(raw_shards):
    return make_beton(raw_shards)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"repeated_sampling": 2},
        {"repeated_sampling": 2, "share_frames": True},
        {"crop": "multi_scale"},
        {"flip": False},
        {"sampling": "segments"},
    ],
    ids=["default", "repeats", "shared", "multi", "plain", "segments"],
)
def test_clips_are_those_of_the_shards_pixel_for_pixel(request, encoding, data):
    folder, path = (request.getfixturevalue(f"{'raw_' * (encoding == 'raw')}{name}") for name in ("shards", "beton"))
    from_shards, from_beton = take(loader(folder, **data), 7), take(loader(folder, path, **data), 7)
    assert names(from_shards) == names(from_beton)
    assert (pixels(from_shards) == pixels(from_beton)).all()
    mirrored = [bool(clip[0, 0, 0, 2] > clip[0, 0, -1, 2]) for clip in pixels(from_beton)]
    assert any(mirrored) == data.get("flip", True)


def test_processes_decode_the_same_clips(raw_shards, raw_beton):
    expected = take(loader(raw_shards), 4)
    found = take(loader(raw_shards, raw_beton, workers=2), 4)
    assert names(found) == names(expected)
    assert (pixels(found) == pixels(expected)).all()


def test_clips_are_augmented_as_those_of_the_shards(shards, beton):
    changes = {"rand_augment": "rand-m9-n2-inc1", "random_erasing": 0.5}
    from_shards, from_beton = (take(loader(shards, path, **changes), 4) for path in ("", beton))
    assert names(from_shards) == names(from_beton)
    assert (pixels(from_shards) == pixels(from_beton)).all()
    assert (pixels(from_shards) != pixels(take(loader(shards), 4))).any()


class TestPixelsOfJpegs:
    """A raw .beton of shards of JPEGs (--raw)."""

    def test_clips_are_those_of_the_jpegs(self, shards, tmp_path):
        write_beton(shards, load_manifest(shards), tmp_path / "a.beton", form=FrameForm(raw=True))
        found, expected = take(loader(shards, tmp_path / "a.beton"), 4), take(loader(shards), 4)
        assert names(found) == names(expected)
        assert (pixels(found) == pixels(expected)).all()

    def test_frames_of_half_the_side_are_means_of_four_pixels(self, shards, tmp_path):
        import simplejpeg

        manifest = load_manifest(shards)
        write_beton(shards, manifest, tmp_path / "a.beton", form=FrameForm(True, 24))
        reader, stored = BetonReader(tmp_path / "a.beton", manifest), open_reader(shards)
        meta = reader.read_meta(3)
        assert (meta.height, meta.width, meta.encoding) == (24, 32, "raw")
        for number, (frame, jpeg) in enumerate(
            zip(reader.read_frames(3, range(12)), stored.read_frames(3, range(12)), strict=True)
        ):
            small = np.frombuffer(frame, np.uint8).reshape(24, 32, 3).astype(float)
            whole = simplejpeg.decode_jpeg(bytes(jpeg), fastupsample=True).astype(float)
            means = whole.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
            assert np.abs(small - means).max() <= 0.5, number

    def test_smaller_frames_keep_order_frames_and_flips(self, shards, tmp_path):
        write_beton(shards, load_manifest(shards), tmp_path / "a.beton", form=FrameForm(True, 36))
        found, expected = take(loader(shards, tmp_path / "a.beton"), 7), take(loader(shards), 7)
        assert names(found) == names(expected)
        assert [*map(frame_numbers, pixels(found))] == [*map(frame_numbers, pixels(expected))]
        assert np.abs(pixels(found) - pixels(expected)).mean() < 3  # another crop would differ by 10 and more


def test_windows_are_kept(tmp_path):
    with ShardWriter(tmp_path / "toy-000000.tar") as shard:
        for sample in range(6):
            jpegs = [picture(number, 48, 64) for number in range(16)]
            shard.write(f"{sample:08d}", jpegs, meta(16, 48, 64, label=sample, windows=[0, 8]))
    settings = EncoderSettings(short_side=48, jpeg_quality=95)
    write_manifest(tmp_path, Manifest("toy", "train", ("none",), settings, (shard.entry,)))
    manifest = load_manifest(tmp_path)
    write_beton(tmp_path, manifest, tmp_path / "a.beton")
    reader, stored = BetonReader(tmp_path / "a.beton", manifest), open_reader(tmp_path)
    for sample in range(6):
        found = reader.read_meta(sample)
        assert found == replace(stored.read_meta(sample), shard="a.beton", key=str(sample))
        assert found.windows == (0, 8)
    options = {"batch": 6, "micro_batch_size": 6}
    clips = pixels(take(loader(tmp_path, tmp_path / "a.beton", **options), 4))
    assert all(frames[0] // 8 == frames[-1] // 8 for frames in map(frame_numbers, clips))


def test_resuming_and_ranks_change_nothing(shards, beton):
    alone = take(loader(shards, beton, micro_batch_size=10, threads=1), 5)
    assert names(take(loader(shards, beton, threads=2), 6, step=2)) == names(alone[2:])
    ranks = [loader(shards, beton, rank=rank, world=2) for rank in range(2)]
    streams = [rank.batches(1) for rank in ranks]
    shared = [next(stream) for _ in range(4) for stream in streams]
    for rank in ranks:
        rank.close()
    assert names(shared) == names(alone[1:])
    assert (pixels(shared) == pixels(alone[1:])).all()


def test_a_run_may_resume_from_the_other_format(shards, beton):
    with loader(shards) as ours, loader(shards, beton) as theirs:
        for one, other in ((ours, theirs), (theirs, ours)):
            check_same_stream(json.loads(json.dumps(one.state(2))), other.identity)
            check_same_run(Config(data=one.data).model_dump(mode="json"), Config(data=other.data))
    moved = theirs.data.model_copy(update={"beton": "/elsewhere/all.beton"})
    check_same_run(Config(data=theirs.data).model_dump(mode="json"), Config(data=moved))


def test_a_variable_of_the_node_is_filled_in(shards, beton, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(beton.parent))
    assert names(take(loader(shards, f"$NODE_DISK/{beton.name}"), 1)) == names(take(loader(shards), 1))


def test_of_the_shards_only_the_manifest_is_needed(shards, beton, tmp_path):
    (tmp_path / "manifest.json").write_bytes((shards / "manifest.json").read_bytes())
    assert names(take(loader(tmp_path, beton), 2)) == names(take(loader(shards), 2))


def test_no_thread_is_left(shards, beton):
    import threading

    take(loader(shards, beton), 1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("clip-", "beton-"))]


class TestCorruption:
    @pytest.fixture
    def damaged(self, beton, tmp_path):
        """A function that copies the file and changes one byte of sample 5's row, table or blob."""

        def damage(column, offset=0):
            path = tmp_path / "damaged.beton"
            path.write_bytes(beton.read_bytes())
            reader = BetonReader(path, load_manifest(beton.parent / "shards"))
            row = reader._rows[5]
            start = path.read_bytes().index(row.tobytes()) if column == "row" else int(row[column])
            flip_byte(path, start + offset)
            return path

        return damage

    @pytest.mark.parametrize(
        ("column", "offset"),
        [("row", 5), ("row", 24), ("row", 28), ("row", 60), ("table", 21), ("ptr", 21), ("ptr", 5000)],
        ids=["pointer", "frames", "windows", "crc", "hashes", "offsets", "jpeg"],
    )
    def test_a_changed_byte_costs_the_sample_and_is_counted(self, shards, damaged, column, offset):
        ours = loader(shards, damaged(column, offset), batch=30)
        found, whole = names(take(ours, 36)), names(take(loader(shards, batch=30), 36))
        assert list(ours.corrupt_samples) == [5]
        assert sum(ours.corrupt.values()) == 1
        assert set(ours.corrupt) <= {"checksum", "bad_index"}
        replaced = [place for place, (row, right) in enumerate(zip(found, whole, strict=True)) if row != right]
        assert replaced
        for place in replaced:
            epoch, position = divmod(place, 30)
            order = EpochSampler(COUNTS, seed=3, epoch=epoch, shuffle_window_shards=2)
            assert whole[place][0] == 5
            assert found[place][0] == order.sample(order.next_in_window(position))

    def test_past_the_budget_the_run_stops(self, shards, damaged):
        ours = loader(shards, damaged("row", 28), batch=30, max_corrupt_samples=0)
        with pytest.raises(UserError, match=r"1 samples of .*damaged.beton:5: .*data.max_corrupt_samples=0"):
            take(ours, 6)

    def test_bytes_that_are_no_jpeg(self, tmp_path):
        """A hash does not find bytes that were stored wrongly."""
        make_shards(tmp_path / "s", (4,), frames=8)
        manifest, path = load_manifest(tmp_path / "s"), tmp_path / "a.beton"
        write_beton(tmp_path / "s", manifest, path)
        reader = BetonReader(path, manifest)
        content, row = bytearray(path.read_bytes()), reader._rows[2].copy()
        table = int(row["table"])
        for number, frame in enumerate(reader.read_frames(2, range(8))):
            wrong = bytes(2) + bytes(frame)[2:]
            start = content.index(bytes(frame), int(row["ptr"]))
            content[start : start + len(wrong)] = wrong
            content[table + 8 * number : table + 8 * number + 8] = xxh3_64(wrong).intdigest().to_bytes(8, "little")
        place = content.index(row.tobytes())
        row["crc"] = row_checksum(row, bytes(content[table : table + 8 * 8 + 4]))
        content[place : place + row.nbytes] = row.tobytes()
        (tmp_path / "b.beton").write_bytes(content)
        decoder = SampleDecoder(BetonReader(tmp_path / "b.beton", manifest), DataConfig(), CLIP)
        clips = np.zeros((2, 4, 32, 32, 3), np.uint8)
        requests = [ClipRequest(0, 3, 0, 2, 0), ClipRequest(1, 3, 0, 1, 0)]
        fault, intact = decoder.decode_into(requests, SharedBuffer(clips, 0), None)
        assert isinstance(fault, CorruptSample)
        assert fault.reason.value == "decode"
        assert not isinstance(intact, CorruptSample)
        assert not clips[0].any()
        assert clips[1].any()


class TestRefusals:
    def test_other_shards(self, beton, tmp_path):
        make_shards(tmp_path / "s", COUNTS[::-1], frames=12)
        with pytest.raises(UserError, match=r"all.beton was not made from the shards of data.shards: write"):
            loader(tmp_path / "s", beton)

    def test_a_missing_file(self, shards, tmp_path):
        with pytest.raises(UserError, match=r"data.beton=.*none.beton does not exist: .*shards beton"):
            loader(shards, tmp_path / "none.beton")

    @pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\2\0\1\0" + b"\0" * 4096, bytes(range(256)) * 64])
    def test_another_file(self, shards, tmp_path, content):
        (tmp_path / "x.beton").write_bytes(content)
        with pytest.raises(UserError, match=r"x.beton is not a .beton of this program"):
            loader(shards, tmp_path / "x.beton")

    @pytest.mark.parametrize("part", [0.0005, 0.5, 0.999])
    def test_a_truncated_file(self, shards, beton, tmp_path, part):
        content = beton.read_bytes()
        (tmp_path / "x.beton").write_bytes(content[: int(len(content) * part)])
        with pytest.raises(UserError, match=r"x.beton is (not a .beton|incomplete)"):
            loader(shards, tmp_path / "x.beton")

    @pytest.mark.parametrize("version", [1, 3])
    def test_another_version(self, shards, beton, tmp_path, version):
        content = beton.read_bytes().replace(b'"version": 2', b'"version": %d' % version)
        (tmp_path / "x.beton").write_bytes(content)
        with pytest.raises(UserError, match=rf"x.beton has version {version} instead of 2"):
            loader(shards, tmp_path / "x.beton")

    def test_flow(self, shards, beton):
        manifest = load_manifest(shards)
        folder = beton.parent / "flow"
        folder.mkdir(exist_ok=True)
        write_manifest(folder, replace(manifest, encoder=replace(manifest.encoder, flow_distance=1)))
        data = DataConfig(shards=str(folder), beton=str(beton))
        with pytest.raises(UserError, match=r"holds no optical flow: leave data.beton empty"):
            ClipLoader(data, CLIP, seed=0, batch=2, micro_batch_size=2, flow=True)


def test_a_run_needs_no_ffcv_and_the_writer_names_the_remedy(shards, beton, tmp_path):
    code = f"""
import sys
sys.modules["ffcv"] = None
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader
clip = ClipConfig(frames=4, size=32, stride=2)
with ClipLoader(
    DataConfig(shards={str(shards)!r}, beton={str(beton)!r}), clip, seed=0, batch=2, micro_batch_size=2
) as ours:
    next(ours.batches(0))
assert not {{"numba", "ffcv.libffcv"}} & set(sys.modules)
from motionmae.commands.app import main
sys.exit(main(["shards", "beton", {str(shards)!r}, "--out", {str(tmp_path / "x.beton")!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "libturbojpeg0-dev pkg-config, then pip install 'motionmae[ffcv]'" in " ".join(result.stderr.split())


def test_the_layout_is_that_of_ffcv(beton):
    from ffcv import types
    from ffcv.reader import Reader

    from motionmae.data.ffcv.field import ClipField

    assert types.CURRENT_VERSION == FFCV_VERSION
    for ours, theirs in (
        (HEADER, types.HeaderType),
        (DESCRIPTOR, types.FieldDescType),
        (ALLOCATION, types.ALLOC_TABLE_TYPE),
    ):
        assert [ours.fields[name][1] for name in ours.names] == [theirs.fields[name][1] for name in theirs.names]
        assert ours.itemsize == theirs.itemsize
    theirs = Reader(str(beton), {FIELD: ClipField})
    ours = BetonReader(beton, load_manifest(beton.parent / "shards"))
    assert theirs.metadata["f0"].tobytes() == ours._rows.tobytes()
    assert theirs.handlers[FIELD].arguments == ours.arguments


@pytest.mark.parametrize("flip", [False, True])
def test_strong_shrinking_averages_areas(tmp_path, flip):
    """Stripes one pixel wide, which bilinear resizing would turn into moiré, become grey."""
    import simplejpeg

    stripes = np.zeros((192, 192, 3), np.uint8)
    stripes[:, ::2] = 255
    with ShardWriter(tmp_path / "toy-000000.tar") as shard:
        for sample in range(4):
            jpegs = [simplejpeg.encode_jpeg(stripes, quality=98)] * 8
            shard.write(f"{sample:08d}", jpegs, meta(8, 192, 192))
    settings = EncoderSettings(short_side=192, jpeg_quality=98)
    write_manifest(tmp_path, Manifest("toy", "train", ("none",), settings, (shard.entry,)))
    write_beton(tmp_path, load_manifest(tmp_path), tmp_path / "a.beton")
    (batch,) = take(
        loader(
            tmp_path, tmp_path / "a.beton", batch=4, micro_batch_size=4, crop_scale=(1, 1), crop_ratio=(1, 1), flip=flip
        ),
        1,
    )
    assert np.abs(batch.clips.numpy().astype(int) - 127).max() < 12


@pytest.mark.long
def test_ffcvs_own_loader_reads_the_blobs(shards, beton):
    from ffcv.loader import Loader, OrderOption

    from motionmae.data.ffcv.field import ClipField

    ours = Loader(str(beton), 5, num_workers=1, order=OrderOption.SEQUENTIAL, custom_fields={FIELD: ClipField})
    (blobs,) = next(iter(ours))
    reader = open_reader(shards)
    for sample, blob in enumerate(blobs):
        assert unpack_frames(bytes(blob.numpy())) == [bytes(jpeg) for jpeg in reader.read_frames(sample, range(12))]
