"""Files of another origin under the names of make_shards, and damaged files of its own: refused in one sentence."""

import json
import shutil
from pathlib import Path

import pytest

from data_tools.make_shards import write
from tests.data_tools.make_shards.in_process import InProcessDecoder
from tests.data_tools.make_shards.runs import fingerprint, make
from tests.data_tools.videos import draw_frames, write_video


@pytest.fixture(autouse=True)
def decode_in_process(monkeypatch):
    monkeypatch.setattr(write, "DecodeWorker", InProcessDecoder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", draw_frames(4))
    (folder / "empty.mp4").touch()
    return folder


def refused(videos: Path, out: Path, capsys, *more: str) -> str:
    """Run make_shards, check that it refuses and changes no file, and return its sentence."""
    before = fingerprint(out)
    assert make(videos, out, *more) == 2
    assert fingerprint(out) == before
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    "name",
    [
        *("quarantine.jsonl", "manifest.json", "all-000000.tar", "all-000000.idx.json", "all-000000.tar.tmp"),
        *("photos.tar", ".all-000000.idx.json.new"),
    ],
)
def test_a_folder_with_files_under_our_names_is_refused(videos, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"path": "x", "reason": "mine", "error": "y"}\n')
    assert f"({name}): choose another folder" in refused(videos, out, capsys)
    assert [path.name for path in out.iterdir()] == [name]


def test_files_with_similar_names_are_left_alone(videos, tmp_path):
    out = tmp_path / "out"
    names = ("quarantine.jsonl.old", "my-manifest.json", "all-000000.tar.gz", "all-000000-keep.idx.json", "README.md")
    states = ("retry-notes.txt", "lock.1of2.backup", "lockof", "all-000000.json.old")
    (out / ".make_shards").mkdir(parents=True)
    paths = [*(out / name for name in names), *(out / ".make_shards" / name for name in states)]
    for path in paths:
        path.write_text("mine")
    assert make(videos, out, "--part", "0/1") == 0
    for more in ((), ("--retry",), ()):
        assert make(videos, out, *more) == 0
    assert [path.read_text() for path in paths] == ["mine"] * len(paths)


@pytest.mark.parametrize("content", ["[]", "5", "null", '"text"', "{}", '{"settings": [], "versions": {}}', "[" * 9999])
@pytest.mark.parametrize("more", [(), ("--retry",), ("--part", "0/2")])
def test_a_plan_that_is_none_is_refused(videos, tmp_path, capsys, content, more):
    out = tmp_path / "out"
    (out / ".make_shards").mkdir(parents=True)
    (out / ".make_shards" / "plan.json").write_text(content)
    assert "plan.json is damaged (" in refused(videos, out, capsys, *more)


@pytest.fixture
def made(videos, tmp_path):
    assert make(videos, tmp_path / "out") == 0
    return tmp_path / "out"


@pytest.mark.parametrize("content", ["mine\n", '{"id": 1}\n', "[]\n", '{"path": 1, "reason": "x", "error": "y"}\n'])
@pytest.mark.parametrize("more", [(), ("--retry",)])
def test_a_quarantine_of_another_origin_is_not_overwritten(videos, made, capsys, content, more):
    (made / "quarantine.jsonl").write_text(content)
    assert "quarantine.jsonl was not written by this program" in refused(videos, made, capsys, *more)


@pytest.mark.parametrize("content", ['{"name": "My app", "icons": []}', "[1, 2]", "7"])
@pytest.mark.parametrize("more", [(), ("--retry",)])
def test_a_manifest_of_another_origin_is_not_overwritten(videos, made, capsys, content, more):
    (made / "manifest.json").write_text(content)
    assert "manifest.json was not written by this program" in refused(videos, made, capsys, *more)


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "5", "{}", '{"counts": {}, "entry": null}', '{"counts": {"videos": "2"}, "entry": null}', "[" * 9999),
        *('{"counts": {"quarantine": [{}]}, "entry": null}', '{"counts": {"damaged": 5}, "entry": null}'),
        '{"counts": {"videos": 2}, "entry": {"name": "../x.tar"}}',
    ],
)
def test_a_damaged_record_is_made_again(videos, made, content):
    before = fingerprint(made)
    record = made / ".make_shards" / "all-000000.json"
    record.write_text(content)
    assert make(videos, made) == 0
    assert fingerprint(made) == before


def test_a_file_under_the_name_of_our_folder_is_refused(videos, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".make_shards").write_text("mine")
    assert "cannot be written" in refused(videos, tmp_path / "out", capsys)


def test_names_that_are_not_utf_8_go_through_the_record_and_the_quarantine(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "a.mp4", draw_frames(4))
    shutil.copy(videos / "a.mp4", bytes(videos) + b"/caf\xe9.mp4")
    (videos / "x\udce9.mp4").touch()
    for more in ((), (), ("--retry",), ()):
        assert make(videos, out, *more) == 0
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["x\udce9.mp4"]


def test_a_link_under_a_temporary_name_is_not_written_through(videos, made, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (made / ".make_shards" / "all-000000.json").unlink()
    (made / "all-000000.tar.tmp").symlink_to(mine)
    assert make(videos, made) == 0
    assert mine.read_text() == "mine"
    assert not (made / "all-000000.tar").is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder", "listed", "absolute"])
@pytest.mark.parametrize("more", [(), ("--part", "0/1")])
def test_videos_outside_of_the_folder_are_noted(tmp_path, capsys, kind, more):
    videos, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    write_video(videos / "a.mp4", draw_frames(4))
    write_video(elsewhere / "b.mp4", draw_frames(4))
    if kind == "file":
        (videos / "b.mp4").symlink_to(elsewhere / "b.mp4")
    elif kind == "folder":
        (videos / "linked").symlink_to(elsewhere)
    else:
        outside = "../elsewhere/b.mp4" if kind == "listed" else str(elsewhere / "b.mp4")
        (videos / "train.csv").write_text(f"a.mp4 0\n{outside} 0\n")
    assert make(videos, tmp_path / "out", *more) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"note: 1 of the videos are outside of {videos}" in printed
    assert "b.mp4" in printed


def test_links_within_the_folder_and_to_the_folder_are_not_noted(tmp_path, capsys):
    videos = tmp_path / "disk" / "videos"
    write_video(videos / "a.mp4", draw_frames(4))
    (videos / "b.mp4").symlink_to("a.mp4")
    (tmp_path / "link").symlink_to(videos)
    assert make(tmp_path / "link", tmp_path / "out") == 0
    assert "note:" not in capsys.readouterr().out
