"""Indexes, manifests, KEY.json and flow of strangers, whose checksums fit."""

import hashlib
import json
import math
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from motionmae import json_text
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, SampleDecoder
from motionmae.data.clip_sampling import Crop
from motionmae.data.flow import decode_flow, encode_flow
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardWriter, index_path, parse_index, shard_is_complete
from motionmae.data.shards.manifest import MANIFEST, parse_manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shards.schema import MAX_SAMPLES, index_limit
from motionmae.errors import UserError
from motionmae.json_text import JSON_LIMIT
from tests.data.made_shards import make_shards, meta, picture
from tests.mutations import documents, mutations, refused

FUZZ = settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
CLIP = ClipConfig(frames=2, size=16, stride=1)
SAMPLES = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of one shard with three samples."""
    folder = tmp_path_factory.mktemp("foreign") / "shards"
    make_shards(folder, (SAMPLES,), frames=4)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def write_index(folder, change) -> None:
    """Change the index of the shard, and its checksum in the manifest."""
    (shard,) = folder.glob("*.tar")
    index = json.loads(index_path(shard).read_bytes())
    raw = change(index) if callable(change) else change
    raw = raw if isinstance(raw, bytes) else json.dumps(index).encode()
    index_path(shard).write_bytes(raw)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["shards"][0]["index_sha256"] = hashlib.sha256(raw).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def use(folder) -> SampleMeta:
    """Read a clip and KEY.json of the first sample."""
    reader = open_reader(folder)
    pixels = np.empty((1, CLIP.frames, CLIP.size, CLIP.size, 3), np.uint8)
    decoder = SampleDecoder(reader, DataConfig(), CLIP)
    (outcome,) = decoder.decode_into([ClipRequest(0, 0, 0, 0, 0)], SimpleNamespace(array=pixels), None)
    if isinstance(outcome, CorruptSample):
        raise outcome
    reader.read_json(0)
    return outcome


NO_NUMBERS = (-1, 2**70, 1.5, "x", None, [1], math.nan, True)
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("frames", "height", "width"), (0, 2**31, 2**40, 2**62, *NO_NUMBERS)),
    "stride": (0, 2, 7, 2**40, *NO_NUMBERS),
    "label": (-2, 2**40, 2**70, 1.5, "x", None, True),
    "fps": (-0.1, -1, 2**70, "x", None, math.nan, math.inf),
    "key": (5, None, "", "a/b", "../a", "a\n", "a" * 81),
    "windows": ([], [-5], [10**9], [3, 2, 1], [1], [0, 0], [0, 4], "abc", 5, None, [0] * 100_000, [0, 1.5], [[0]]),
    "crc32": (2**32, *NO_NUMBERS),
    **{f"{member}_offset": (2**40, 2**62, *NO_NUMBERS) for member in ("crcs", "jpgs", "json", "flow")},
    **{f"{member}_size": (2**31, 2**40, *NO_NUMBERS) for member in ("crcs", "jpgs", "json", "flow")},
    "jpgs_size": (0, 10),
    "crcs_size": (0, 10),
    "flow_size": (1,),
}


class TestIndex:
    @pytest.mark.parametrize("column", WRONG)
    def test_a_wrong_value_is_a_corrupt_sample(self, copy, column):
        for value in WRONG[column]:

            def put(index, value=value):
                index["columns"][column][0] = value

            write_index(copy, put)
            with pytest.raises(CorruptSample) as caught:
                use(copy)
            assert caught.value.reason is Reason.BAD_INDEX, value

    @pytest.mark.parametrize(
        "change",
        [
            b"[" * 100_000,
            b"\xff\xfe",
            b'{"format_version": ' + b"9" * 5000 + b"}",
            lambda index: index.update(columns=[]),
            lambda index: index.update(columns=dict.fromkeys(index["columns"], 5)),
            lambda index: index.update(samples="x"),
            lambda index: index.update(samples=2**40),
            lambda index: index["columns"]["fps"].pop(),
            lambda index: index["columns"].pop("fps"),
        ],
    )
    def test_a_wrong_document_is_a_corrupt_sample(self, copy, change):
        write_index(copy, change)
        with pytest.raises(CorruptSample) as caught:
            use(copy)
        assert caught.value.reason is Reason.BAD_INDEX

    def test_further_keys_are_skipped(self, copy):
        write_index(copy, lambda index: index.update(written_by="a later version"))
        assert use(copy).frames == 4

    def test_a_manifest_with_more_samples_than_its_index(self, copy):
        manifest = json.loads((copy / MANIFEST).read_bytes())
        manifest["shards"][0]["samples"] = manifest["samples"] = 9
        (copy / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CorruptSample) as caught:
            open_reader(copy).read_meta(8)
        assert caught.value.reason is Reason.REPLACED_SHARD

    def test_an_index_larger_than_its_samples_need_is_not_read(self, copy):
        (shard,) = copy.glob("*.tar")
        with index_path(shard).open("ab") as file:
            file.truncate(10 * index_limit(MAX_SAMPLES))  # sparse
        with pytest.raises(CorruptSample, match=r"more than \d+ bytes"):
            use(copy)
        assert not shard_is_complete(shard)

    def test_a_shard_with_too_large_an_index_is_not_written(self, tmp_path):
        shard = ShardWriter(tmp_path / "a.tar").__enter__()
        shard.write("0", [picture(0, 16, 24)], meta(1, 16, 24))
        shard._columns["windows"][0] = list(range(500_000))
        with pytest.raises(UserError, match="store fewer samples per shard"):
            shard.__exit__(None)

    def test_an_index_that_a_reader_would_refuse_is_not_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(json_text, "JSON_VALUES", 100)
        shard = ShardWriter(tmp_path / "a.tar").__enter__()
        shard.write("0", [picture(number, 16, 24) for number in range(90)], meta(90, 16, 24))
        shard._columns["windows"][0] = list(range(90))
        with pytest.raises(UserError, match=r"more than 100 values.*store fewer samples per shard"):
            shard.__exit__(None)
        assert not list(tmp_path.glob("a.*"))

    def test_fuzz(self, whole):
        (path,) = whole.glob("*.idx.json")
        document = json.loads(path.read_bytes())

        @FUZZ
        @given(raw=mutations(document) | documents())
        def check(raw):
            with refused(CorruptSample, UserError):
                entry, columns = parse_index(path, raw)
                assert {len(column) for column in columns.values()} == {entry.samples}

        check()


class TestManifest:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("name", value) for value in ("../x.tar", "/etc/passwd", "a\n.tar", "x.zip", 5, None, "x" * 300)),
            *(("samples", value) for value in (-1, 2**70, 1.5, "4", True, None)),
            *(("bytes", value) for value in (-5, 0, 2**60, 1.5, "4", "5/../../x")),
            *(("sha256", value) for value in ([1], "0" * 63, "Z" * 64, "0" * 64 + "\n", None)),
        ],
    )
    def test_a_wrong_shard_is_refused(self, copy, key, value):
        manifest = json.loads((copy / MANIFEST).read_bytes())
        manifest["shards"][0][key] = value
        (copy / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"manifest.json (is damaged|has a shard with the invalid name)"):
            load_manifest(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"encoder": {"short_side": "x", "jpeg_quality": 90}},
            {"encoder": {"short_side": 256, "jpeg_quality": 90, "stride": 0}},
            {"class_names": 5},
            {"class_names": [1, 2, 3]},
            {"shards": {}},
            {"samples": 2**70},
            {"versions": {"av": 5}},
            {"quarantined": -1},
        ],
    )
    def test_wrong_settings_are_refused(self, copy, change):
        manifest = json.loads((copy / MANIFEST).read_bytes())
        (copy / MANIFEST).write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=r"manifest.json is damaged"):
            load_manifest(copy)

    def test_a_pipe_or_a_huge_file_is_refused(self, copy):
        with (copy / MANIFEST).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(UserError, match="more than 67108864 bytes"):
            load_manifest(copy)

    def test_fuzz(self, whole):
        document = json.loads((whole / MANIFEST).read_bytes())

        @FUZZ
        @given(raw=mutations(document) | documents())
        def check(raw):
            with refused(UserError):
                manifest = parse_manifest("manifest.json", raw)
                assert manifest.samples == sum(shard.samples for shard in manifest.shards)

        check()

    @pytest.mark.parametrize("unit", [b"[],", b"{},", b"1,"])
    def test_a_document_of_too_many_values_is_not_parsed(self, unit):
        raw = b'{"format_version": 2, "shards": [' + unit * (JSON_LIMIT // 4) + b"1]}"
        with pytest.raises(UserError, match=r"more than (67108864 bytes|2000000 values)"):
            parse_manifest("manifest.json", raw[:JSON_LIMIT])


class TestKeyJson:
    def test_fuzz(self, whole):
        """KEY.json has no checksum of its own."""
        reader = open_reader(whole)
        shard, row = reader._find(0)
        start, size = shard.value("json_offset", row), shard.value("json_size", row)
        document = json.loads(shard.read(row, start, size))

        @FUZZ
        @given(raw=mutations(document) | documents())
        def check(raw):
            shard.read = lambda *place: raw
            with refused(CorruptSample):
                assert isinstance(reader.read_json(0)["source"], str)

        check()


class TestFlow:
    META = SampleMeta("a.tar", "0", 0, 25.0, 4, 1, 32, 48, (0,), has_flow=True)

    def decode(self, content: bytes) -> np.ndarray:
        out = np.zeros((8, 8, 2), np.float16)
        decode_flow(content, self.META, Crop(0, 0, 32, 32), out)
        return out

    @pytest.mark.parametrize(
        "content",
        [
            bytes(4) + zlib.compress(b""),
            b"\xff\xff\xff\xff" + zlib.compress(bytes(65535 * 100)),
            b"\x08\x00\x0c\x00" + zlib.compress(bytes(1 << 24)),
            b"\x08\x00\x0c\x00" + zlib.compress(bytes(8 * 12 * 4))[:-3],
            b"\x08\x00\x0c\x00" + zlib.compress(bytes(8 * 12 * 4 - 1)),
        ],
    )
    def test_a_field_of_another_size_than_it_says(self, content):
        with pytest.raises(CorruptSample):
            self.decode(content)

    def test_a_whole_field(self):
        assert not self.decode(encode_flow(np.zeros((32, 48, 2), np.float32))).any()

    @FUZZ
    @given(
        content=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x08\x00\x0c\x00\x78\x9c" + tail)
    )
    def test_fuzz(self, content):
        with pytest.raises(CorruptSample):
            self.decode(content)
