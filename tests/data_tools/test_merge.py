import json
import os

import numpy as np
import pytest
import webdataset

from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.manifest import write_manifest
from tests.commands.functions import merge as main
from tests.commands.functions import verify
from tests.data.made_shards import make_shards
from tests.data_tools.make_shards.runs import fingerprint
from tests.fault_injection import kill_points


@pytest.fixture
def folders(tmp_path):
    for name, counts in (("a", (3, 2)), ("b", (4,))):
        made = make_shards(tmp_path / name, counts)
        write_manifest(tmp_path / name, type(made)(**{**vars(made), "class_names": tuple("abcde"), "quarantined": 1}))
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("link", [True, False])
def test_samples_follow_each_other_and_share_the_disk(folders, tmp_path, capsys, monkeypatch, link):
    def refuse(*_):
        raise OSError("another disk")

    if not link:
        monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"
    assert main([*folders, "--out", str(out)]) == 0
    assert "9 samples in 3 shards of 2 folders" in capsys.readouterr().out
    assert verify([str(out)]) == 0
    reader = open_reader(out)
    assert (reader.manifest.quarantined, reader.manifest.class_names) == (2, tuple("abcde"))
    parts = [open_reader(folder) for folder in folders]
    pairs = [(part, sample) for part in parts for sample in range(part.manifest.samples)]
    for sample, (part, number) in enumerate(pairs):
        assert reader.read_meta(sample).label == part.read_meta(number).label
        assert reader.read_frames(sample, [0, 3]) == part.read_frames(number, [0, 3])
    assert (out / "merged-000000.tar").stat().st_nlink == 1 + link


def test_webdataset_reads_all_samples_although_keys_repeat(tmp_path):
    make_shards(tmp_path / "a", (1,))  # its last key is the first of the next shard
    make_shards(tmp_path / "b", (1,), frames=5)
    out = tmp_path / "out"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    shards = sorted(map(str, out.glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [(sample["__key__"], sample["__url__"]) for sample in samples] == [("00000000", shard) for shard in shards]
    assert [json.loads(sample["json"])["frames"] for sample in samples] == [4, 5]


def test_a_folder_with_shards_of_another_kind_is_not_merged_into(folders, tmp_path, capsys):
    out = tmp_path / "out"
    (out / ".make_shards").mkdir(parents=True)
    assert main([*folders, "--out", str(out)]) == 2
    assert "holds .make_shards, which merge did not write" in capsys.readouterr().err
    (out / ".make_shards").rmdir()
    (out / "merged-000009.tar").write_bytes(b"of a killed merge of more")
    assert main([*folders, "--out", str(out)]) == 0
    assert not (out / "merged-000009.tar").exists()


def test_other_classes_go_together_without_labels(folders, tmp_path, capsys):
    manifest = load_manifest(folders[1])
    write_manifest(tmp_path / "b", type(manifest)(**{**vars(manifest), "class_names": ("x",)}))
    assert main([*folders, "--out", str(tmp_path / "out")]) == 2
    assert "have different classes: merge them with --without-labels" in capsys.readouterr().err
    assert main([*folders, "--out", str(tmp_path / "out"), "--without-labels"]) == 0
    reader = open_reader(tmp_path / "out")
    assert {reader.read_meta(sample).label for sample in range(9)} == {-1}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "toy-000000.tar").unlink(), "missing_shard"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (
            lambda folder: (folder / "manifest.json").write_text(
                (folder / "manifest.json").read_text().replace('"stride": 1', '"stride": 2')
            ),
            "differ in frame settings",
        ),
    ],
)
def test_what_does_not_go_together_is_named(folders, tmp_path, capsys, damage, says):
    damage(tmp_path / "b")
    assert main([*folders, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_same_shard_twice_is_refused(folders, tmp_path, capsys):
    assert main([folders[0], folders[1], folders[0], "--out", str(tmp_path / "out")]) == 2
    assert f"{folders[0]}/toy-000000.tar and {folders[0]}/toy-000000.tar are the same shard" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_finished_folder_is_not_overwritten(folders, tmp_path, capsys):
    assert main([*folders, "--out", folders[0]]) == 2
    assert "is a complete folder of shards" in capsys.readouterr().err
    assert (
        np.sum([shard["samples"] for shard in json.loads((tmp_path / "a" / "manifest.json").read_text())["shards"]])
        == 5
    )


FOREIGN = (
    *("merged-results.csv", "merged-000000.tar.gz", "merged-0000001.tar", "merged-000000.idx.json.bak", "merged-"),
    *(
        "merged-000000.tar.old",
        "xmerged-000000.tar",
        "quarantine.jsonl.old",
        "my-quarantine.jsonl",
        "merged-000000.TAR",
    ),
    *("merged-000000.tar\n", "merged-\u0660\u0660\u0660\u0660\u0660\u0660.tar", ".merged-000000.tar.notahex.tmp"),
)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("killed", [False, True], ids=["", "after a killed merge"])
def test_files_of_others_are_never_deleted(folders, tmp_path, capsys, name, killed):
    out = tmp_path / "out"
    out.mkdir()
    names = {name, *(("merged-000000.tar", "merged-000000.idx.json", "quarantine.jsonl") if killed else ())}
    for one in names:
        (out / one).write_text("" if one == "quarantine.jsonl" else "mine")
    assert main([*folders, "--out", str(out)]) == 2
    assert "which merge did not write: choose a new folder" in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in out.iterdir()} == names
    assert (out / name).read_text() == "mine"


@pytest.mark.parametrize("beside", [(), ("merged-000000.tar",)])
def test_a_quarantine_of_another_origin_is_not_overwritten(folders, tmp_path, capsys, beside):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("quarantine.jsonl", *beside):
        (out / name).write_text('{"id": "mine"}\n')
    assert main([*folders, "--out", str(out)]) == 2
    assert "quarantine.jsonl" in capsys.readouterr().err
    assert (out / "quarantine.jsonl").read_text() == '{"id": "mine"}\n'
    assert {path.name for path in out.iterdir()} == {"quarantine.jsonl", *beside}


def test_a_folder_under_a_name_of_merge_is_refused(folders, tmp_path, capsys):
    (tmp_path / "out" / "merged-000001.tar").mkdir(parents=True)
    (tmp_path / "out" / "merged-000000.tar").write_text("left")
    assert main([*folders, "--out", str(tmp_path / "out")]) == 2
    assert "holds merged-000001.tar, which merge did not write" in capsys.readouterr().err
    assert (tmp_path / "out" / "merged-000000.tar").read_text() == "left"


def merge_both(folder):
    assert main([str(folder / "a"), str(folder / "b"), "--out", str(folder / "out")]) == 0


@pytest.mark.slow
def test_a_killed_merge_can_be_repeated_and_its_sources_stay(folders, tmp_path, capsys):
    seed = tmp_path / "seed"
    seed.mkdir()
    for name in "ab":
        (tmp_path / name).rename(seed / name)
    before = fingerprint(seed)
    kills = list(kill_points(merge_both, seed, tmp_path / "killed"))
    assert len(kills) > 10
    for kill in kills:
        if not (kill.folder / "out" / "manifest.json").exists():
            merge_both(kill.folder)
        assert verify([str(kill.folder / "out")]) == 0, kill
        after = fingerprint(kill.folder)
        assert {name: after[name] for name in before} == before, kill
