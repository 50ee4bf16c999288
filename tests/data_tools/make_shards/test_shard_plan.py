"""Keys, shards and settings of a plan, and the names of its files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.annotations import Split, VideoRecord
from data_tools.decode import FrameSettings
from data_tools.make_shards.records import Counts, ShardRecord, finished_entries, load_record, save_record
from data_tools.make_shards.shard_plan import (
    PlannedShard,
    lock_new_output,
    lock_output,
    make_plan,
    segment_key,
    segment_of,
    write_or_check_plan,
)
from motionmae.data.shards.format import ShardEntry
from motionmae.errors import UserError


def split_of(count: int, name: str = "train 1") -> Split:
    videos = tuple(VideoRecord(f"{n}.mp4", Path(f"{n}.mp4"), n % 2, "ab"[n % 2]) for n in range(count))
    return Split(videos, ("a", "b"), name, "a list")


def order_of(count: int, seed: int) -> list[str]:
    def place(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()

    return sorted((f"{n}.mp4" for n in range(count)), key=place)


@pytest.mark.parametrize("seed", [0, 7])
def test_videos_are_sorted_by_a_hash_and_dealt_to_shards(seed: int):
    plan = make_plan("folder", split_of(10), FrameSettings(), seed, 4)
    stored = [(key, video.source) for shard in plan.shards for key, video in shard.videos]
    assert stored == [(f"{place:08d}", name) for place, name in enumerate(order_of(10, seed))]
    assert [shard.name for shard in plan.shards] == [f"train_1-00000{number}.tar" for number in range(3)]
    assert [len(shard.videos) for shard in plan.shards] == [4, 4, 2]
    assert (plan.num_videos, plan.encoding, plan.samples_per_shard) == (10, "jpeg", 4)
    assert (plan.settings["seed"], plan.settings["samples_per_shard"], plan.settings["videos"]) == (seed, 4, 10)
    part = plan.part(1, 2)
    assert [shard.name for shard in part.shards] == ["train_1-000001.tar"]
    assert [shard.name for shard in plan.part(0, 2).shards] == ["train_1-000000.tar", "train_1-000002.tar"]


@pytest.mark.parametrize(
    ("videos", "segment_seconds", "samples", "shards"),
    [(16, 0, 1, 16), (17, 0, 2, 9), (1024, 0, 64, 16), (1100, 0, 64, 18), (3, 10, 64, 3)],
)
def test_a_small_set_has_sixteen_shards_and_a_large_one_shards_of_64(
    videos: int, segment_seconds: float, samples: int, shards: int
):
    plan = make_plan("folder", split_of(videos), FrameSettings(segment_seconds=segment_seconds))
    assert (plan.samples_per_shard, len(plan.shards)) == (samples, shards)


def test_a_number_of_samples_out_of_reach_is_refused():
    for number in (0, -1, 10**9):
        with pytest.raises(UserError, match=f"--samples-per-shard {number} is not possible: choose 1 to "):
            make_plan("folder", split_of(3), FrameSettings(), 0, number)
    assert len(make_plan("folder", split_of(3), FrameSettings(), 0, 1).shards) == 3


def test_the_settings_name_what_changes_bytes_and_leave_out_what_earlier_plans_lacked():
    plan = make_plan("folder", split_of(4), FrameSettings())
    assert not {"chroma", "segment_seconds", "images"} & plan.settings.keys()
    other = make_plan("folder", split_of(4), FrameSettings(chroma="444", segment_seconds=5, images=True))
    assert {name: other.settings[name] for name in ("chroma", "segment_seconds", "images")} == {
        "chroma": "444", "segment_seconds": 5, "images": True,
    }  # fmt: skip
    split = split_of(4)
    for videos in (split.videos[1:], (replace(split.videos[0], label=5), *split.videos[1:])):
        changed = make_plan("folder", replace(split, videos=videos), FrameSettings())
        assert changed.settings["videos_hash"] != plan.settings["videos_hash"]
    shuffled = make_plan("folder", replace(split, videos=split.videos[::-1]), FrameSettings())
    assert (shuffled.shards, shuffled.settings) == (plan.shards, plan.settings)
    assert ("opencv" in make_plan("folder", split, FrameSettings(flow=2)).versions) > ("opencv" in plan.versions)
    assert plan.versions.keys() == {"av", "libavcodec", "libswscale", "simplejpeg"}
    assert plan.versions["libavcodec"].count(".") == 2


def test_names_of_segments():
    shard = PlannedShard("all-000003.tar", ())
    assert shard.file_of_segments(7) == "all-000003-0007.tar"
    assert shard.number_of_file("all-000003-0007.tar") == 7
    assert shard.number_of_file("all-000003-12345.tar") == 12345
    for name in ("all-000003.tar", "all-000003-007.tar", "all-000003-00007.tar", "all-000004-0007.tar",
                 "all-000003-0007.tar.tmp", "xall-000003-0007.tar", "all-000003-0007xtar"):  # fmt: skip
        assert shard.number_of_file(name) is None
        assert shard.has_file(name) is (name == "all-000003.tar")
    assert shard.has_file("all-000003-0000.tar")
    assert segment_key("00000004", 12) == "00000004-00012"
    assert segment_of("00000004", "00000004-00012") == 12
    for name in ("00000004", "00000005-00012", "00000004-0012", "00000004-00012x", "00000004-1234567890"):
        assert segment_of("00000004", name) is None


def test_a_plan_is_written_once_and_then_must_be_the_same(tmp_path: Path):
    plan = make_plan("folder", split_of(4), FrameSettings())
    write_or_check_plan(plan, tmp_path / "out")
    write_or_check_plan(plan, tmp_path / "out")
    with pytest.raises(UserError, match=r"was started with seed=0, and this run has seed=1"):
        write_or_check_plan(make_plan("folder", split_of(4), FrameSettings(), 1), tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"manifest\.json was not written by this program"):
        write_or_check_plan(plan, tmp_path / "out")
    for content in ('{"format_version": 1}', "damaged {"):
        (tmp_path / "out/manifest.json").write_text(content)
        write_or_check_plan(plan, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "seconds", "refused"),
    [
        ("notes.txt", 0, False),
        ("mine.tar", 0, True),
        ("manifest.json", 0, True),
        ("quarantine.jsonl", 0, True),
        ("train_1-000000.idx.json", 0, True),
        (".train_1-000000.idx.json.new", 0, True),
        ("train_1-000000.tar.tmp", 0, True),
        ("train_1-000009.tar.tmp", 0, False),
        ("train_1-000000-0000.idx.json", 0, False),
        ("train_1-000000-0000.idx.json", 5, True),
    ],
)
def test_a_folder_with_files_of_these_names_is_refused(tmp_path: Path, name: str, seconds: float, refused: bool):
    (tmp_path / name).touch()
    plan = make_plan("folder", split_of(4), FrameSettings(segment_seconds=seconds))
    if refused:
        with pytest.raises(UserError, match="holds shards that this command did not start, or files with their names"):
            write_or_check_plan(plan, tmp_path)
    else:
        write_or_check_plan(plan, tmp_path)
    assert (tmp_path / ".make_shards/plan.json").exists() is not refused


def test_tars_of_others_keep_a_new_folder_from_being_locked(tmp_path: Path):
    (tmp_path / "mine.tar").touch()
    with pytest.raises(UserError, match="holds tars that this command did not write"), lock_new_output(tmp_path):
        pass
    (tmp_path / "mine.tar").unlink()
    with lock_new_output(tmp_path):
        assert (tmp_path / ".make_shards/lock").exists()
        with pytest.raises(UserError, match="another make_shards is writing to"), lock_output(tmp_path):
            pass
    write_or_check_plan(make_plan("folder", split_of(4), FrameSettings()), tmp_path)
    (tmp_path / "train_1-000000.tar").touch()
    with lock_new_output(tmp_path):  # its own
        pass


def test_parts_exclude_the_whole_and_the_same_part(tmp_path: Path):
    (tmp_path / ".make_shards").mkdir()
    with lock_output(tmp_path, (0, 2)), lock_output(tmp_path, (1, 2)):
        for other in (None, (0, 2)):
            with pytest.raises(UserError, match="another make_shards is writing to"), lock_output(tmp_path, other):
                pass
    refused = pytest.raises(UserError, match="was started in 2 parts, but --part names one of 3")
    with refused, lock_output(tmp_path, (2, 3)):
        pass
    with lock_output(tmp_path):  # alone: the number of parts is free again
        pass
    with lock_output(tmp_path, (2, 3)):
        pass


def counts_of(number: int) -> Counts:
    return Counts(
        videos=3, samples=number, frames=10 * number, bytes=100 * number, damaged=[f"d{number}"],
        matrices={f"m{number}": {"a": "b"}}, quarantine=[{"path": "q", "reason": f"r{number}", "error": "e"}],
        kept=[f"k{number}"], set_aside=[f"s{number}"], substituted=[f"x{number}"],
    )  # fmt: skip


def test_every_count_is_added():
    total = counts_of(1)
    total.add(counts_of(2))
    assert total == Counts(
        videos=6, samples=3, frames=30, bytes=300, damaged=["d1", "d2"], matrices={"m1": {"a": "b"}, "m2": {"a": "b"}},
        quarantine=[{"path": "q", "reason": reason, "error": "e"} for reason in ("r1", "r2")], kept=["k1", "k2"],
        set_aside=["s1", "s2"], substituted=["x1", "x2"],
    )  # fmt: skip
    assert total.stored == 4
    assert total.reasons == {"r1": 1, "r2": 1}


def test_a_record_holds_what_a_run_must_know_later(tmp_path: Path):
    shard = PlannedShard("all-000000.tar", (("0", split_of(1).videos[0]),) * 3)
    empty = replace(counts_of(0), samples=0)
    (tmp_path / ".make_shards").mkdir()
    save_record(tmp_path, shard, ShardRecord(empty, ()))
    stored = json.loads((tmp_path / ".make_shards/all-000000.json").read_text())
    assert stored["counts"].keys() == {"videos", "samples", "frames", "bytes", "damaged", "matrices", "quarantine",
                                       "substituted"}  # fmt: skip
    found = load_record(tmp_path, shard)
    assert found == ShardRecord(replace(empty, kept=[], set_aside=[]), ())
    for change in ({"videos": 2}, {"samples": 1}, {"frames": "3"}, {"frames": True}, {"damaged": [1]},
                   {"substituted": [1]}, {"quarantine": [{"path": "q"}]}, {"matrices": {"m": {"a": 1}}}):  # fmt: skip
        (tmp_path / ".make_shards/all-000000.json").write_text(
            json.dumps({**stored, "counts": stored["counts"] | change})
        )
        assert load_record(tmp_path, shard) is None, change
    entry = ShardEntry("all-000000.tar", "0" * 64, 10, 1, "0" * 64)
    (tmp_path / ".make_shards/all-000000.json").write_text(json.dumps({**stored, "entries": [vars(entry)]}))
    assert load_record(tmp_path, shard) is None  # the shard is gone


def test_entries_are_in_the_order_of_the_plan():
    plan = make_plan("folder", split_of(3), FrameSettings(), 0, 1)
    names = [shard.name for shard in plan.shards]
    entries = {name: ShardEntry(name, "0" * 64, 1, 1, "0" * 64) for name in names}
    records = {name: ShardRecord(Counts(), (entries[name],)) for name in reversed(names)}
    assert finished_entries(plan, records) == tuple(entries.values())
    assert finished_entries(plan, {names[0]: records[names[0]]}) is None
