"""Annotation lists, quarantine rows and state files of make_shards that somebody changed."""

import json
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.annotations import lists as lists_module
from data_tools.annotations import read_split
from data_tools.decode import FrameSettings
from data_tools.make_shards.records import Counts, ShardRecord, load_record, record_path
from data_tools.make_shards.shard_plan import STATE, make_plan, write_or_check_plan
from data_tools.merge import merge
from data_tools.stats import collect
from motionmae.data.open_shards import load_manifest
from motionmae.errors import UserError
from tests.data.made_shards import make_shards
from tests.data_tools.annotations.files import refusal, touch, write
from tests.mutations import documents, mutations, refused

FUZZ = settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
K400 = "label,youtube_id,time_start,time_end,split\narchery,aaaaaaaaaaa,0,10,train\nabseiling,bbbbbbbbbbb,3,13,train\n"
LISTS = {
    "folder": ("train.csv", "path,label\nv1.mp4,a\nv2.mp4,b\n"),
    "k400": ("train.csv", K400),
    "ucf101": ("trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1\n"),
    "hmdb51": ("wave_test_split1.txt", "v1.avi 1\nv2.avi 2\n"),
}
SPLITS = {"folder": "train", "k400": "train", "ucf101": "train1", "hmdb51": "train1"}


@pytest.fixture
def videos(tmp_path):
    return touch(tmp_path / "videos", "v1.mp4", "v2.mp4", "aaaaaaaaaaa.mp4", "v_Archery_g01_c01.avi", "v1.avi")


@pytest.fixture
def lists(tmp_path):
    folder = tmp_path / "lists"
    for name, text in LISTS.values():
        write(folder / name, text)
    write(folder / "classInd.txt", "1 Archery\n")
    return folder


class TestLists:
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
    @pytest.mark.parametrize("dataset", LISTS)
    def test_a_byte_order_mark_tells_the_encoding(self, videos, lists, dataset, encoding):
        if dataset == "folder":
            (lists / "classInd.txt").unlink()
        name, text = LISTS[dataset]
        write(lists / name, text)
        whole = read_split(dataset, videos, lists, SPLITS[dataset])
        (lists / name).write_bytes(text.encode(encoding))
        assert read_split(dataset, videos, lists, SPLITS[dataset]).videos == whole.videos

    @pytest.mark.parametrize("dataset", LISTS)
    def test_utf16_without_a_mark_is_refused(self, videos, lists, dataset):
        name, text = LISTS[dataset]
        (lists / name).write_bytes(text.encode("utf-16-le"))
        assert "perhaps UTF-16: save it as UTF-8" in refusal(dataset, videos, lists, SPLITS[dataset])

    @pytest.mark.parametrize("dataset", LISTS)
    def test_a_huge_list_is_not_read(self, monkeypatch, videos, lists, dataset):
        monkeypatch.setattr(lists_module, "LIST_BYTES", 1000)
        with (lists / LISTS[dataset][0]).open("ab") as file:
            file.truncate(1 << 40)
        assert "more than 1000 bytes" in refusal(dataset, videos, lists, SPLITS[dataset])

    def test_seconds_that_are_digits_elsewhere(self, tmp_path, videos):
        write(tmp_path / "train.csv", K400.replace(",10,", ",²,"))
        assert "must be seconds" in refusal("k400", videos, tmp_path / "train.csv", "train")

    def test_a_short_row(self, tmp_path, videos):
        write(tmp_path / "list.csv", "label,path\na,v1.mp4\nb\n")
        assert read_split("folder", videos, tmp_path / "list.csv", None).videos[0].source == "v1.mp4"

    @pytest.mark.parametrize("dataset", LISTS)
    def test_fuzz(self, videos, lists, dataset):
        name, text = LISTS[dataset]
        raw = text.encode()
        places = st.dictionaries(st.integers(0, len(raw) - 1), st.binary(max_size=3), max_size=5)

        @FUZZ
        @given(changes=places, tail=st.binary(max_size=20), encoding=st.sampled_from(["utf-8", "utf-16", "utf-32"]))
        def check(changes, tail, encoding):
            parts = [changes.get(place, raw[place : place + 1]) for place in range(len(raw))]
            content = b"".join(parts) + tail
            content = content if encoding == "utf-8" else content.decode(errors="replace").encode(encoding)
            (lists / name).write_bytes(content)
            with refused(UserError):
                read_split(dataset, videos, lists, SPLITS[dataset])

        check()

    @pytest.mark.parametrize("part", ["labels", "train"])
    def test_fuzz_of_ssv2(self, tmp_path, videos, part):
        content = {
            "labels": {"Closing something": "0", "Opening something": "1"},
            "train": [{"id": "1", "template": "Closing [something]", "placeholders": ["a box"]}, {"id": "v1"}],
        }
        for name, document in content.items():
            write(tmp_path / f"something-something-v2-{name}.json", json.dumps(document))

        @FUZZ
        @given(raw=mutations(content[part]) | documents())
        def check(raw):
            (tmp_path / f"something-something-v2-{part}.json").write_bytes(raw)
            with refused(UserError):
                read_split("ssv2", videos, tmp_path, "train")

        check()


class TestState:
    @pytest.fixture
    def plan(self, videos):
        return make_plan("folder", read_split("folder", videos, None, None), FrameSettings(), samples_per_shard=2)

    def test_fuzz_of_the_plan(self, tmp_path, plan):
        out = tmp_path / "out"
        write_or_check_plan(plan, out)
        path = out / STATE / "plan.json"
        document = json.loads(path.read_bytes())

        @FUZZ
        @given(raw=mutations(document) | documents())
        def check(raw):
            path.write_bytes(raw)
            with refused(UserError):
                write_or_check_plan(plan, out)

        check()

    def test_fuzz_of_a_record(self, tmp_path, plan):
        (shard, *_) = plan.shards
        row = {"path": "v1.mp4", "reason": "empty", "error": "no bytes"}
        counts = Counts(videos=2, damaged=["caf\udce9.mp4"], quarantine=[row, row])
        document = asdict(ShardRecord(counts, ()))
        path = record_path(tmp_path, shard)
        path.parent.mkdir()
        path.write_text(json.dumps(document))
        whole = load_record(tmp_path, shard)
        assert whole is not None
        assert whole.counts.quarantine == [row, row]

        @FUZZ
        @given(raw=mutations(document) | documents())
        def check(raw):
            path.write_bytes(raw)
            record = load_record(tmp_path, shard)
            assert record is None or all(row.keys() >= {"path", "reason", "error"} for row in record.counts.quarantine)

        check()

    def test_huge_quarantine_rows_are_not_merged(self, tmp_path):
        make_shards(tmp_path / "s", (2,))
        with (tmp_path / "s" / "quarantine.jsonl").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(UserError, match=r"quarantine.jsonl cannot be read \(it has more than"):
            merge([tmp_path / "s"], tmp_path / "merged")

    def test_fuzz_of_quarantine_rows(self, tmp_path):
        make_shards(tmp_path / "s", (2,))
        manifest = load_manifest(tmp_path / "s")
        row = {"path": "a.mp4", "reason": "empty", "error": "no bytes"}

        @FUZZ
        @given(raw=mutations(row) | documents())
        def check(raw):
            (tmp_path / "s" / "quarantine.jsonl").write_bytes(json.dumps(row).encode() + b"\n" + raw + b"\n")
            with refused(UserError):
                assert collect(tmp_path / "s", manifest)["quarantined"]["empty"] >= 1

        check()
