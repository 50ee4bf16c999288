"""Tars of videos, written by the webdataset library as video2dataset writes them, into shards."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_tools.make_shards.webdataset import _label, expand_shards
from motionmae.commands.app import main
from motionmae.data.open_shards import open_reader
from motionmae.errors import UserError
from tests.data_tools.videos import draw_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_video(folder / name, draw_frames(6 + number), codec=codec)
        for number, (name, codec) in enumerate([("0.mp4", "libx264"), ("1.webm", "libvpx"), ("2.mp4", "libx264")])
    ]


@pytest.fixture(scope="module")
def tars(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of three samples; the last one is damaged, and one sample has no video."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(2):
        with webdataset.TarWriter(str(folder / f"{tar:05d}.tar")) as writer:
            for number, video in enumerate(videos):
                name = f"{tar:05d}{number:04d}"
                content = video.read_bytes() if (tar, number) != (1, 2) else b"\x00" * 5000
                facts = {"key": name, "caption": f"caption {name}", "status": "success"}
                sample: dict[str, Any] = {"__key__": name, video.suffix[1:]: content, "json": facts}
                writer.write(sample | {"txt": f"caption {name}", "cls": number % 2})
            writer.write({"__key__": f"{tar}lost", "json": {"status": "failed_to_download"}, "txt": "nothing"})
    return folder


def make(*arguments: object) -> int:
    return main(["shards", "make", "webdataset", *map(str, arguments), "--workers", "1"])


def test_videos_labels_and_captions_are_those_of_the_tars(tars: Path, videos: list[Path], tmp_path: Path):
    assert make("--shards", f"{tars}/{{00000..00001}}.tar", "--out", tmp_path / "s") == 0
    plain = tmp_path / "plain"
    plain.mkdir()
    for video in videos:
        (plain / video.name).write_bytes(video.read_bytes())
    folder = ["shards", "make", "folder", "--videos", str(plain), "--out", str(tmp_path / "f"), "--workers", "1"]
    assert main(folder) == 0
    reader, expected = open_reader(tmp_path / "s"), open_reader(tmp_path / "f")
    by_name = {expected.read_json(sample)["source"]: sample for sample in range(3)}
    assert reader.manifest.samples == 5
    for sample in range(5):
        facts = reader.read_json(sample)
        tar, key = facts["source"].split("/")
        number = int(key[5:9])
        assert tar == key[:5]
        assert facts["label"] == number % 2
        assert facts["caption"] == f"caption {key[:9]}"
        twin = by_name[videos[number].name]
        frames = range(facts["frames"])
        assert facts["frames"] == 6 + number
        assert reader.read_frames(sample, frames) == expected.read_frames(twin, frames)
    row = json.loads((tmp_path / "s/quarantine.jsonl").read_text())
    assert row["path"] == "00001/000010002.mp4"
    # only the video in the quarantine stays, and the command does nothing more
    left = [path.name for path in (tmp_path / "s/.make_shards/tars").rglob("*.*") if path.suffix in (".mp4", ".webm")]
    assert left == ["00000002.mp4"]
    assert make("--shards", f"{tars}/{{00000..00001}}.tar", "--out", tmp_path / "s") == 0


def test_a_folder_labels_from_json_and_a_stopped_command(
    tars: Path, videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "tars"
    for number, kind in enumerate(["walk", "run", "walk"]):
        folder.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(folder / f"{number}.tar")) as writer:
            meta = {"category": kind, "nested": {"a": 1}}
            writer.write({"__key__": f"clips/{number}.left", "mp4": videos[0].read_bytes(), "json": meta})
    (folder / "2.tar").rename(tmp_path / "2.tar")
    (folder / "2.tar").write_bytes((tmp_path / "2.tar").read_bytes()[:2000])  # cut off
    assert make("--shards", folder, "--out", tmp_path / "s") == 2
    assert "2.tar cannot be read" in capsys.readouterr().err
    first = tmp_path / "s/.make_shards/tars/000000.json"
    before = first.stat().st_mtime_ns
    (tmp_path / "2.tar").rename(folder / "2.tar")
    assert make("--shards", folder, "--out", tmp_path / "s") == 0
    assert first.stat().st_mtime_ns == before  # not unpacked again
    assert open_reader(tmp_path / "s").manifest.class_names == ("run", "walk")
    assert make("--shards", tars, "--out", tmp_path / "s") == 2
    assert "was started with the tar" in capsys.readouterr().err
    assert make("--shards", tars, "--label-from", "json:kind", "--out", tmp_path / "t") == 2
    assert "has no key 'kind'" in capsys.readouterr().err


@pytest.fixture
def served(tars: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tars))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_tars_behind_a_url_give_the_same_shards(served: str, tars: Path, tmp_path: Path):
    assert make("--shards", f"{tars}/{{00000..00001}}.tar", "--out", tmp_path / "local") == 0
    assert make("--shards", f"{served}/{{00000..00001}}.tar", "--out", tmp_path / "remote") == 0
    local, remote = open_reader(tmp_path / "local").manifest, open_reader(tmp_path / "remote").manifest
    assert remote.fingerprint == local.fingerprint


def test_no_pattern_runs_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for pattern in (f"pipe:touch {tmp_path}/ran", f"{tmp_path}/x.tar|touch {tmp_path}/ran", "gopen://x/a.tar",
                    f"scp://host/{tmp_path}/a.tar", "http://u:secret@host/a.tar"):  # fmt: skip
        assert make("--shards", pattern, "--out", tmp_path / "s") == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "secret" not in message
    assert not (tmp_path / "ran").exists()
    for pattern in ("{000000000..999999999}.tar", "{a,b}" * 40, "{000..999}" * 3, "{0..9}" * 4000):
        with pytest.raises(UserError, match="more than"):
            expand_shards(pattern)
    with pytest.raises(UserError, match="does not exist"):
        expand_shards(str(tmp_path / "missing.tar"))
    assert main(["shards", "make", "webdataset", "--videos", str(tmp_path), "--out", str(tmp_path / "s")]) == 2
    assert main(["shards", "make", "folder", "--shards", "a.tar", "--out", str(tmp_path / "s")]) == 2


@pytest.mark.parametrize(
    ("label_from", "label", "without_members"),
    [
        ("cls", "7", ""),
        ("txt", "a caption", ""),
        ("json:kind", "run", "run"),
        ("json:number", "3", "3"),
        ("none", "", ""),
        ("", "7", "walk"),
    ],
)
def test_the_label_is_read_from_the_member_of_the_option(label_from: str, label: str, without_members: str):
    members, facts = {"cls": b" 7\n", "txt": b"a caption\n"}, {"kind": "run", "number": 3, "category": "walk"}
    assert _label(members, facts, label_from, "a.tar/0") == label
    assert _label({}, facts, label_from, "a.tar/0") == without_members
