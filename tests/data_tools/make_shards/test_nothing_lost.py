"""Stored samples whose originals are gone or fail now: no run loses them."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_tools.annotations import read_split
from data_tools.decode import FrameSettings, QuarantineReason, UndecodableVideo
from data_tools.make_shards import write
from data_tools.make_shards.records import load_records
from data_tools.make_shards.retry import begin_retry
from data_tools.make_shards.shard_plan import make_plan
from motionmae.data.open_shards import open_reader
from motionmae.data.shards import publish
from tests.commands.functions import verify
from tests.data_tools.make_shards.in_process import InProcessDecoder, decode_video
from tests.data_tools.make_shards.runs import fingerprint, make, quarantine, run_on_full_disk
from tests.data_tools.videos import draw_frames, write_video

# shard 0 holds v2, v3 and broken, shard 1 holds v0 and v1: by the hash of their names
NAMES = ("v0.avi", "v1.avi", "v2.avi", "v3.avi", "broken.avi")
ALL_BUT_BROKEN = set(NAMES[:-1])
OPTIONS = ("--split", "train", "--samples-per-shard", "3", "--workers", "1")
HARMED = ("v0.avi", "v2.avi", "v3.avi")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Four videos and, as ``broken.avi``, a damaged one; ``broken.avi.good`` is its sound version."""
    folder = tmp_path_factory.mktemp("originals")
    for number, name in enumerate(NAMES):
        write_video(folder / name, draw_frames(40 + number, 128, 96), "mpeg4")
    (folder / "broken.avi").rename(folder / "broken.avi.good")
    (folder / "broken.avi").write_bytes((folder / "broken.avi.good").read_bytes()[:300])
    (folder / "train.csv").write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(NAMES)))
    return folder


@pytest.fixture(scope="module")
def first_shards(originals, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "DecodeWorker", InProcessDecoder)
        assert make(originals, out, "--split", "train") == 0
    return out


@pytest.fixture
def made(originals, first_shards, tmp_path, monkeypatch):
    """(videos, shards): copies that a test may damage. Two shards, of three and of two videos."""
    monkeypatch.setattr(write, "DecodeWorker", InProcessDecoder)
    return shutil.copytree(originals, tmp_path / "videos"), shutil.copytree(first_shards, tmp_path / "out")


def retry(videos: Path, out: Path, *more: str) -> int:
    return make(videos, out, "--split", "train", "--retry", *more)


def rerun(videos: Path, out: Path, *more: str) -> int:
    return make(videos, out, "--split", "train", *more)


def stored(out: Path) -> set[str]:
    reader = open_reader(out)
    return {reader.read_json(sample)["source"] for sample in range(reader.manifest.samples)}


def shard_bytes(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in fingerprint(out).items() if name.endswith((".tar", ".idx.json"))}


def mend(videos: Path) -> None:
    (videos / "broken.avi.good").replace(videos / "broken.avi")


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """Leave the first frames, which still decode."""
    whole = decode_video(path, FrameSettings()).source_frames
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert 0 < decode_video(path, FrameSettings()).source_frames < whole


def overwrite(path: Path) -> None:
    path.write_text("not a video at all\n" * 30)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_label_that_changed_in_a_shard_is_not_copied(made):
    """KEY.json has no checksum: a retry would give the wrong label an index of its own, and verify would accept it."""
    videos, out = made
    before = shard_bytes(out)
    shard = min(out.glob("*.tar"))  # with the broken video, so that the retry makes it again
    content = shard.read_bytes()
    place = content.index(b'"label":') + len(b'"label":')
    shard.write_bytes(content[:place] + str(1 - int(content[place : place + 1])).encode() + content[place + 1 :])
    assert retry(videos, out) == 0
    assert shard_bytes(out) == before


@pytest.mark.parametrize("harm", [remove, empty, cut, overwrite, make_a_folder])
@pytest.mark.parametrize("is_mended", [False, True], ids=["nothing new", "one mended"])
def test_a_retry_only_adds(made, capsys, harm, is_mended):
    videos, out = made
    before = shard_bytes(out)
    for name in HARMED:
        harm(videos / name)
    if is_mended:
        mend(videos)
    assert retry(videos, out) == 0
    assert stored(out) == ALL_BUT_BROKEN | ({"broken.avi"} if is_mended else set())
    assert set(quarantine(out)) == (set() if is_mended else {"broken.avi"})
    assert verify([str(out)]) == 0
    assert is_mended or shard_bytes(out) == before
    if harm in (remove, empty):
        assert "kept:         v2.avi, v3.avi, as stored before" in capsys.readouterr().out


@pytest.mark.parametrize("reason", [QuarantineReason.TIMEOUT, QuarantineReason.CRASHED, QuarantineReason.UNREADABLE])
def test_a_decoder_that_fails_now_loses_nothing(made, monkeypatch, reason):
    videos, out = made

    def fail(self, path):
        raise UndecodableVideo(reason, "as told")

    mend(videos)
    monkeypatch.setattr(InProcessDecoder, "decode", fail)
    assert retry(videos, out) == 0
    assert stored(out) == ALL_BUT_BROKEN
    assert quarantine(out) == {"broken.avi": reason.value}


def test_a_retry_gives_the_bytes_of_a_run_with_the_mended_video(made, tmp_path):
    videos, out = made
    mend(videos)
    assert retry(videos, out) == 0
    assert rerun(videos, tmp_path / "fresh") == 0
    assert fingerprint(out) == fingerprint(tmp_path / "fresh")


def test_all_originals_gone_is_refused_and_changes_nothing(made, tmp_path, capsys):
    videos, out = made
    before = fingerprint(out)
    lists = tmp_path / "lists"
    lists.mkdir()
    (videos / "train.csv").rename(lists / "train.csv")
    videos.rename(tmp_path / "elsewhere")
    where = ("--annotations", str(lists))
    assert retry(videos, out, *where) == 2
    videos.mkdir()  # a mount point without its disk
    assert retry(videos, out, *where) == 2
    assert rerun(videos, out, *where) == 2
    assert fingerprint(out) == before
    capsys.readouterr()


def test_a_list_or_tree_that_lost_videos_is_refused_and_changes_nothing(made, tmp_path, capsys):
    videos, out = made
    before = fingerprint(out)
    lines = (videos / "train.csv").read_text().splitlines(keepends=True)
    (videos / "train.csv").write_text("".join(lines[1:]))
    assert retry(videos, out) == 2
    assert "videos=5, " in capsys.readouterr().err
    assert fingerprint(out) == before
    (videos / "train.csv").unlink()
    for number, name in enumerate(NAMES):
        (videos / "ab"[number % 2]).mkdir(exist_ok=True)
        (videos / name).rename(videos / "ab"[number % 2] / name)
    tree = tmp_path / "tree"
    assert make(videos, tree) == 0
    before = fingerprint(tree)
    (videos / "a" / "v0.avi").unlink()
    assert make(videos, tree, "--retry") == 2
    assert fingerprint(tree) == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_retry_of_a_part_only_adds(made, number):
    videos, out = made
    for name in HARMED:
        (videos / name).unlink()
    assert retry(videos, out, "--part", f"{number}/2") == 0
    assert retry(videos, out, "--part", f"{1 - number}/2") == 0
    assert rerun(videos, out) == 0
    assert stored(out) == ALL_BUT_BROKEN


@pytest.mark.parametrize("again", [retry, rerun])
def test_a_stopped_retry_goes_on_without_loss(made, monkeypatch, again):
    videos, out = made

    def stop(self, path):
        raise KeyboardInterrupt

    mend(videos)
    for name in HARMED:
        (videos / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(InProcessDecoder, "decode", stop)
        with pytest.raises(KeyboardInterrupt):
            write.write_shards(*arguments_of_a_retry(videos, out))
    assert again(videos, out) == 0
    assert stored(out) == {*NAMES}


def arguments_of_a_retry(videos: Path, out: Path):
    """Begin a retry and return the arguments of write_shards."""
    plan = make_plan("folder", read_split("folder", videos, None, "train"), FrameSettings(), 0, 3)
    records = load_records(plan, out)
    assert begin_retry(plan, out, records) == 1
    return plan, out, records, 1, 60.0, lambda counts: None, True


def test_a_retry_on_a_full_disk_leaves_the_folder_complete(made):
    videos, out = made
    before = fingerprint(out)
    mend(videos)
    for name in HARMED:
        (videos / name).unlink()
    process = run_on_full_disk(videos, out, *OPTIONS, "--retry")
    assert process.returncode == 2
    assert "cannot be written" in process.stderr
    after = fingerprint(out)
    kept = {name: digest for name, digest in before.items() if not name.startswith(".make_shards")}
    assert kept.items() <= after.items()
    assert verify([str(out)]) == 0
    assert retry(videos, out) == 0
    assert stored(out) == {*NAMES}


def lose_record(out: Path, shard: Path) -> None:
    (out / ".make_shards" / f"{shard.stem}.json").unlink()


def damage_record(out: Path, shard: Path) -> None:
    (out / ".make_shards" / f"{shard.stem}.json").write_text('{"counts": {"videos": "3"}, "entry": null}')


def lose_index(out: Path, shard: Path) -> None:
    shard.with_name(f"{shard.stem}.idx.json").unlink()


def damage_index(out: Path, shard: Path) -> None:
    shard.with_name(f"{shard.stem}.idx.json").write_text("[]")


@pytest.mark.parametrize("harm", [lose_record, damage_record, lose_index, damage_index])
@pytest.mark.parametrize("again", [retry, rerun])
def test_samples_of_a_damaged_shard_are_found_in_its_tar(made, capsys, harm, again):
    videos, out = made
    before = shard_bytes(out)
    for name in HARMED:
        (videos / name).unlink()
    for shard in out.glob("*.tar"):
        harm(out, shard)
    assert again(videos, out) == 0
    assert stored(out) == ALL_BUT_BROKEN
    assert shard_bytes(out) == before
    assert "kept:" in capsys.readouterr().out


def test_a_truncated_shard_is_set_aside_if_it_loses_a_sample(made, capsys):
    videos, out = made
    shard = out / "train-000001.tar"
    columns = json.loads((out / "train-000001.idx.json").read_text())["columns"]
    os.truncate(shard, columns["jpgs_offset"][1] + 100)  # within the sample of v1, the last one
    cut_shard = shard.read_bytes()
    (videos / "v1.avi").unlink()
    (videos / "v0.avi").unlink()
    assert rerun(videos, out) == 0
    assert stored(out) == ALL_BUT_BROKEN - {"v1.avi"}
    assert (out / "train-000001.tar.damaged").read_bytes() == cut_shard
    printed = capsys.readouterr().out
    assert "set aside:    train-000001.tar.damaged" in printed
    assert "kept:         v0.avi" in printed
    assert verify([str(out)]) == 0


def test_a_truncated_shard_is_made_again_if_the_originals_are_there(made):
    videos, out = made
    before = fingerprint(out)
    for shard in out.glob("*.tar"):
        os.truncate(shard, shard.stat().st_size // 2)
    assert rerun(videos, out) == 0
    assert fingerprint(out) == before


@pytest.mark.parametrize("again", [retry, rerun])
def test_damaged_frames_stay_known(made, again):
    """A sample with a wrong bit whose original is gone is copied with its checksums."""
    videos, out = made
    shard = out / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 300] ^= 1
    shard.write_bytes(content)
    for name in HARMED:
        (videos / name).unlink()
    mend(videos)
    lose_record(out, shard)
    assert again(videos, out) == 0
    assert stored(out) == {*NAMES}
    assert verify([str(out), "--decode", "100"]) == 1


def test_a_sample_whose_description_is_damaged_is_set_aside_with_its_shard(made, capsys):
    videos, out = made
    shard = out / "train-000000.tar"
    columns = json.loads((out / "train-000000.idx.json").read_text())["columns"]
    content = bytearray(shard.read_bytes())
    content[columns["json_offset"][0]] = ord("x")
    shard.write_bytes(content)
    for name in HARMED:
        (videos / name).unlink()
    for _ in range(2):
        assert retry(videos, out) == 0
        assert stored(out) == ALL_BUT_BROKEN - {"v2.avi"}
    assert (out / "train-000000.tar.damaged").read_bytes() == content
    assert not (out / "train-000000.tar.damaged1").exists()
    assert "set aside:" in capsys.readouterr().out


def test_damaged_frames_are_repaired_by_the_original(made):
    videos, out = made
    before = shard_bytes(out)
    shard = out / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 300] ^= 1
    shard.write_bytes(content)
    assert retry(videos, out) == 0
    assert shard_bytes(out) == before


def test_a_better_original_replaces_a_shorter_sample(made, tmp_path):
    videos, out = made[0], tmp_path / "fresh"
    whole = (videos / "v2.avi").read_bytes()
    cut(videos / "v2.avi")
    assert rerun(videos, out) == 0
    (videos / "v2.avi").write_bytes(whole)
    lose_record(out, out / "train-000000.tar")
    assert rerun(videos, out) == 0
    assert shard_bytes(out) == shard_bytes(made[1])


@pytest.mark.parametrize("again", [rerun, retry])
def test_the_manifest_is_gone_before_a_shard_is_replaced(made, monkeypatch, again):
    """A reader must not take the folder for complete while shards are made again."""
    videos, out = made
    for shard in out.glob("*.tar"):
        os.truncate(shard, shard.stat().st_size // 2)
    seen = []
    replace = publish.publish

    def note(shard, index):
        seen.append((shard.name, (out / "manifest.json").exists()))
        replace(shard, index)

    monkeypatch.setattr("motionmae.data.shards.format.publish", note)
    assert again(videos, out) == 0
    assert sorted(seen) == [("train-000000.tar", False), ("train-000001.tar", False)]
    assert (out / "manifest.json").exists()


def test_a_run_that_replaces_no_shard_keeps_the_manifest(made, monkeypatch):
    videos, out = made
    before = (out / "manifest.json").stat().st_mtime_ns
    lose_record(out, out / "train-000000.tar")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_tools.make_shards.cli.finish", stop)
    assert retry(videos, out) == 130
    assert (out / "manifest.json").stat().st_mtime_ns == before
