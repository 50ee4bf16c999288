"""Files of one name: the first that decodes is stored. The right numbers of frames are those of the ffmpeg program."""

import json
import shutil
import subprocess
import tarfile

import pytest

from tests.commands.functions import make_shards as main
from tests.data_tools.annotations.files import write
from tests.data_tools.make_shards.runs import quarantine
from tests.data_tools.videos import draw_frames, ffmpeg_count, write_video

CLIP = "R6llTwEh07w_000005_000015.mp4"
OTHER = "SOX5yA1l24A_000000_000010.mp4"


@pytest.fixture
def layout(tmp_path):
    """Kinetics as the CVDF's scripts leave it: a cut original and a whole video of another name."""
    root = tmp_path / "k400"
    whole = write_video(root / "train" / OTHER, draw_frames(5))
    (root / "train" / CLIP).write_bytes(whole.read_bytes()[:300])
    header = "label,youtube_id,time_start,time_end,split\n"
    write(root / "annotations" / "train.csv", f"{header}a,R6llTwEh07w,5,15,train\nb,SOX5yA1l24A,0,10,train\n")
    return root


def samples_of(out):
    """Path -> KEY.json of every stored video."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            metas = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
        found |= {meta["source"]: meta for meta in metas}
    return found


def make(root, *more):
    command = ["k400", "--videos", str(root), "--annotations", str(root / "annotations"), "--split", "train"]
    return main([*command, "--out", str(root.parent / "out"), "--workers", "1", *more])


def add(root, folder, frames):
    return write_video(root / folder / CLIP, draw_frames(frames))


def test_a_replacement_wins_and_a_later_file_is_tried(layout, capsys):
    copy = add(layout, "copies", 7)
    assert ffmpeg_count(layout / "train" / CLIP) == 0
    assert make(layout) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"substituted: copies/{CLIP} for train/{CLIP}, which cannot be decoded" in shown
    assert f"for example train/{CLIP} before copies/{CLIP}" in shown
    stored = samples_of(layout.parent / "out")
    assert stored[f"copies/{CLIP}"]["frames"] == ffmpeg_count(copy) == 7
    shutil.rmtree(layout.parent / "out")
    better = add(layout, "replacement/replacement_for_corrupted_k400", 9)
    assert make(layout) == 0
    assert "substituted" not in capsys.readouterr().out
    name = better.relative_to(layout).as_posix()
    assert samples_of(layout.parent / "out")[name]["frames"] == ffmpeg_count(better) == 9


def test_a_retry_takes_the_replacement_that_was_added(layout):
    assert make(layout) == 0
    assert quarantine(layout.parent / "out") == {f"train/{CLIP}": "not_a_video"}
    add(layout, "replacement", 9)
    assert make(layout, "--retry") == 0
    assert quarantine(layout.parent / "out") == {}
    assert samples_of(layout.parent / "out")[f"replacement/{CLIP}"]["frames"] == 9


def test_if_no_file_decodes_all_are_named_with_the_reason_of_the_first(layout):
    write(layout / "copies" / CLIP, "")
    assert make(layout) == 0
    (row,) = map(json.loads, (layout.parent / "out" / "quarantine.jsonl").read_text().splitlines())
    assert (row["path"], row["reason"]) == (f"train/{CLIP}", "not_a_video")
    assert row["error"].endswith(f"; nor can copies/{CLIP} be decoded")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_what_a_list_names_is_quarantined_with_what_it_is(tmp_path):
    videos = tmp_path / "videos"
    part = write_video(videos / "v.mp4", draw_frames(5)).rename(videos / "v.mp4.part")
    assert ffmpeg_count(part) == 5
    write_video(videos / "ok.mp4", draw_frames(6))
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        videos / "ok.mp4",
        "-frames:v",
        "1",
        "-c:v",
        "libaom-av1",
        "-cpu-used",
        "8",
    ]
    subprocess.run([*command, videos / "picture.avif"], check=True)
    contents = {
        "lfs.mp4": POINTER,
        "page.mp4": b"\n<!doctype html><html></html>",
        "double.mp4": b"\0\5\x16\7" + bytes(80),
        "release.nfo": b"\xb0\xb1 text of a release\n" * 20,
        "thumb.jfif": b"\xff\xd8\xff\xe0" + bytes(80),
    }
    for name, content in contents.items():
        (videos / name).write_bytes(content)
    names = ["v.mp4.part", "ok.mp4", "picture.avif", *contents]
    file = write(tmp_path / "list.csv", "path,label\n" + "".join(f"{name},0\n" for name in names))
    out = tmp_path / "out"
    assert (
        main(["folder", "--videos", str(videos), "--annotations", str(file), "--out", str(out), "--workers", "1"]) == 0
    )
    rows = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    errors = {row["path"]: row["error"] for row in rows}
    assert set(samples_of(out)) == {"ok.mp4"}
    for name, what in {
        "v.mp4.part": "it is an unfinished download: finish the download",
        "picture.avif": "it is a picture",
        "lfs.mp4": "it is a Git LFS pointer: run git lfs pull",
        "page.mp4": "it is an HTML page: download the video again",
        "double.mp4": "it is an AppleDouble file: macOS wrote it",
        "release.nfo": "it is a text",
        "thumb.jfif": "it is a picture",
    }.items():
        assert what in errors[name], errors[name]
