"""Files and folders that the disk or the permissions do not give, at every command that reads them."""

import errno
import os
from pathlib import Path

import pytest

from data_tools.annotations import read_split
from motionmae.__main__ import main
from motionmae.data.open_shards import load_manifest
from motionmae.errors import UserError
from tests.data.made_shards import make_shards
from tests.data_tools.annotations.files import touch, write

ERRORS = [errno.EACCES, errno.EIO, errno.ESTALE]
K400 = "label,youtube_id,time_start,time_end,split\narchery,aaaaaaaaaaa,0,10,train\n"


@pytest.fixture
def fail(monkeypatch):
    """Make a path, and all below a folder, fail with an error of the operating system."""

    def start(target: Path, number: int) -> None:
        def guarded(function):
            def call(path, *arguments, **options):
                name = None if isinstance(path, int) else Path(os.fsdecode(path))
                if name is not None and (name == target or target in name.parents):
                    raise OSError(number, os.strerror(number), str(name))
                return function(path, *arguments, **options)

            return call

        for name in ("open", "scandir", "listdir"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name)))
        if target.is_dir():  # what is in a closed folder has no status; a closed file has one
            status = os.stat
            below = guarded(status)
            monkeypatch.setattr(os, "stat", lambda path, **more: (status if path == target else below)(path, **more))

    return start


@pytest.fixture
def shards(tmp_path):
    make_shards(tmp_path / "shards", (2,))
    write(tmp_path / "shards" / "quarantine.jsonl", '{"path": "a.mp4", "reason": "empty", "error": "no bytes"}\n')
    return tmp_path / "shards"


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("shards stats {}", ("manifest.json", "quarantine.jsonl", "toy-000000.idx.json", ".")),
        ("shards verify {}", ("manifest.json", ".")),
        ("shards preview {} --out {}.png", ("manifest.json", "toy-000000.idx.json", ".")),
        ("shards merge {} --out {}.merged", ("manifest.json", "quarantine.jsonl", "toy-000000.idx.json", ".")),
    ],
)
def test_shards(shards, fail, capsys, monkeypatch, number, command, names):
    for name in names:
        fail(shards / name, number)
        status = main(command.replace("{}", str(shards)).split())
        monkeypatch.undo()
        error = capsys.readouterr().err
        assert (status, error.count("\n")) == (2, 1), error
        assert error.startswith("error: ")
        assert name.replace(".idx.json", "") in error
        assert os.strerror(number) in error


@pytest.mark.parametrize("number", ERRORS)
def test_the_manifest_of_a_training(shards, fail, monkeypatch, number):
    for target in (shards / "manifest.json", shards, shards.parent):
        fail(target, number)
        with pytest.raises(UserError, match=rf"manifest.json cannot be read \({os.strerror(number)}\)"):
            load_manifest(shards)
        monkeypatch.undo()


LISTS = {
    "folder": ("train", {"train.csv": "aaaaaaaaaaa.mp4 0\n", "classInd.txt": "0 a\n"}),
    "k400": ("train", {"train.csv": K400, "label_map.txt": "archery\n"}),
    "ucf101": ("train1", {"trainlist01.txt": "a/v_a_g01_c01.avi 1\n", "classInd.txt": "1 a\n"}),
    "hmdb51": ("train1", {"wave_test_split1.txt": "v1.avi 1\n"}),
    "ssv2": (
        "train",
        {
            "something-something-v2-labels.json": '{"a": "0"}',
            "something-something-v2-train.json": '[{"id": "aaaaaaaaaaa", "template": "a"}]',
        },
    ),
}


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("dataset", LISTS)
def test_lists(tmp_path, fail, monkeypatch, dataset, number):
    split, files = LISTS[dataset]
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa.mp4", "v_a_g01_c01.avi", "v1.avi")
    for name, text in files.items():
        write(tmp_path / "lists" / name, text)
    assert read_split(dataset, videos, tmp_path / "lists", split).videos[0].path is not None
    for target in (*(tmp_path / "lists" / name for name in files), tmp_path / "lists"):
        fail(target, number)
        with pytest.raises(UserError, match=os.strerror(number)) as caught:
            read_split(dataset, videos, tmp_path / "lists", split)
        monkeypatch.undo()
        assert str(target) in str(caught.value)


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("dataset", ["folder", "k400"])
def test_videos(tmp_path, fail, dataset, number):
    videos = touch(tmp_path / "videos", "a/aaaaaaaaaaa.mp4")
    file = write(tmp_path / "train.csv", K400)
    fail(videos, number)
    with pytest.raises(UserError, match=os.strerror(number)):
        read_split(dataset, videos, file if dataset == "k400" else None, "train")


def test_a_file_in_a_closed_folder_is_not_missing(tmp_path, fail):
    """Its decoding gives the reason; ``missing`` would send the user to the download."""
    videos = touch(tmp_path / "videos", "closed/v1.mp4", "v2.mp4")
    file = write(tmp_path / "train.csv", "closed/v1.mp4 0\nv2.mp4 1\n")
    fail(videos / "closed", errno.EACCES)
    found = read_split("folder", videos, file, "train")
    assert [video.path for video in found.videos] == [videos / "closed/v1.mp4", videos / "v2.mp4"]


def test_a_folder_with_the_name_of_a_list(tmp_path):
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa.mp4")
    for name in ("old.csv", "label_map.txt", "classInd.txt"):
        (tmp_path / "lists" / name).mkdir(parents=True)
    write(tmp_path / "lists" / "train.csv", K400)
    (video,) = read_split("k400", videos, tmp_path / "lists", "train").videos
    assert video.path == videos / "aaaaaaaaaaa.mp4"


@pytest.mark.parametrize(
    "content",
    [b"\0\5\x16\7\0\2\0\0Mac OS X", b"nom;dur\xe9e\n", K400.encode() + b"x" * 200_000 + b",b,0,1,train\n"],
    ids=["AppleDouble", "Latin-1", "long"],
)
@pytest.mark.parametrize("name", ["._train.csv", "notes.csv"])
def test_other_files_beside_the_list(tmp_path, name, content):
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa.mp4")
    write(tmp_path / "lists" / "train.csv", K400)
    (tmp_path / "lists" / name).write_bytes(content)
    for annotations in (tmp_path / "lists", tmp_path / "lists" / "train.csv"):
        split = read_split("k400", videos, annotations, "train")
        assert [video.class_name for video in split.videos] == ["archery"]
