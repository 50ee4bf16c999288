"""Lists, file names, headers of tars, manifests and indexes of any content: success or one sentence."""

import contextlib
import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data_tools.annotations import read_split
from data_tools.annotations.video_lists import read_video_list
from motionmae.__main__ import main
from motionmae.data.shards.format import ShardWriter, index_path
from motionmae.data.shards.manifest import MANIFEST, EncoderSettings, Manifest, write_manifest
from motionmae.data.shards.stored_samples import StoredSamples
from motionmae.errors import UserError
from tests.data.made_shards import make_shards, meta, picture
from tests.data_tools.annotations.files import touch
from tests.mutations import documents, mutations, refused

LENGTHS = [pytest.param(1, id="short"), pytest.param(40, id="long", marks=pytest.mark.long)]
"""Factors of the number of examples."""


def bounded(examples):
    checks = list(HealthCheck)
    return settings(derandomize=True, max_examples=examples, deadline=None, suppress_health_check=checks, database=None)


PIECES = [
    *(
        "v1.mp4",
        "v2.MP4",
        "sub/a b.avi",
        "gone.webm",
        "clip",
        "folder",
        "/abs/v1.mp4",
        "..",
        "a\\v1.mp4",
        "caf\xe9.mp4",
    ),
    *(
        "cafe\u0301.mp4",
        "0",
        "-1",
        "2.0",
        "7",
        "100",
        "nan",
        "1e5",
        "walk",
        "None",
        "²",
        "9" * 30,
        "-9",
        "[/x]",
        "$(x)",
    ),
    *(
        "path",
        "label",
        "video_path",
        "class",
        "split",
        "train",
        "val",
        "start",
        "end",
        "youtube_id",
        "Unnamed: 0",
        "id",
    ),
    *(
        ",",
        ",",
        ";",
        "\t",
        " ",
        " ",
        "|",
        "\n",
        "\n",
        "\n",
        "\r\n",
        "\r",
        "\n\n",
        '"',
        '"',
        "'",
        "#",
        "sep=;",
        "\u2028",
    ),
    *("\x85", "\x0c", "\0", "\ufeff", "{", "}", "[", "]", ":", '{"path": "v1.mp4", "label": 3}', '["v1.mp4", 1]'),
    *("\udce9", "x" * 5000, ",,,,", "path,label\n", "v1.mp4,1\n", "v2.MP4 0 -1\n"),
]
"""What lists are made of, and what they should not be made of."""
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]
SUFFIXES = ["csv", "txt", "json", "jsonl", "tsv"]


@pytest.mark.parametrize("factor", LENGTHS)
def test_lists(tmp_path, factor):
    videos = touch(tmp_path / "videos", "v1.mp4", "v2.MP4", "sub/a b.avi", "clip", "folder/1.jpg", "cafe\u0301.mp4")
    texts = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60)

    @bounded(150 * factor)
    @given(
        text=texts,
        encoding=st.sampled_from(ENCODINGS),
        suffix=st.sampled_from(SUFFIXES),
        split=st.none() | st.just("train"),
    )
    def check(text, encoding, suffix, split):
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        try:
            content = text.encode(encoding, errors)
        except UnicodeEncodeError:
            assume(False)
        file = tmp_path / f"train.{suffix}"
        file.write_bytes(content)
        with refused(UserError):
            found = read_split("folder", videos, file, split)
            assert all(-1 <= video.label < len(found.class_names) for video in found.videos)
            assert all(video.label == -1 or video.class_name for video in found.videos)
        file.unlink()

    check()


@pytest.mark.parametrize("factor", LENGTHS)
def test_lists_in_json(tmp_path, factor):
    videos = touch(tmp_path / "videos", "v1.mp4", "v2.mp4")
    document = [{"path": "v1.mp4", "label": 3, "split": "train"}, {"path": "v2.mp4", "label": 1, "split": "val"}]
    pandas = {"path": {"0": "v1.mp4", "1": "v2.mp4"}, "label": {"0": 3, "1": 1}}
    file = tmp_path / "train.json"

    @bounded(40 * factor)
    @given(raw=mutations(document) | mutations(pandas) | mutations({"v1.mp4": 3, "v2.mp4": 1}) | documents())
    def check(raw):
        file.write_bytes(raw)
        with refused(UserError):
            read_split("folder", videos, file, "train")

    check()


NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r/"), min_size=1, max_size=12)


@pytest.mark.parametrize("factor", LENGTHS)
def test_a_table_that_the_csv_module_writes_is_read_as_it_is(tmp_path, factor):
    file = tmp_path / "list.csv"
    names = st.lists(NAME.filter(lambda name: name == name.strip(" \t\v\f")), min_size=1, max_size=6, unique=True)

    @bounded(60 * factor)
    @given(
        stems=names,
        labels=st.lists(st.integers(0, 500), min_size=6, max_size=6),
        delimiter=st.sampled_from(",;\t| "),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        lineterminator=st.sampled_from(["\n", "\r\n"]),
        has_header=st.booleans(),
        encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    )
    def check(stems, labels, delimiter, quoting, lineterminator, has_header, encoding):
        rows = [(f"{stem}.mp4", label) for stem, label in zip(stems, labels, strict=False)]
        text = io.StringIO()
        table = [("path", "label"), *rows] if has_header else rows
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=lineterminator).writerows(table)
        file.write_bytes(text.getvalue().encode(encoding))
        files = {name: Path(name) for name, _ in rows}
        found = read_video_list(file, None, files.get, files.__contains__)
        assert [(entry.source, int(float(entry.label))) for entry in found.entries] == rows

    check()


@pytest.mark.parametrize("factor", LENGTHS)
def test_names_of_files_and_folders(tmp_path, factor):
    parts = (
        st.binary(min_size=1, max_size=20)
        .map(lambda raw: raw.translate(None, b"\0/"))
        .filter(lambda raw: raw not in (b"", b".", b".."))
    )
    number = 0

    @bounded(60 * factor)
    @given(
        folders=st.lists(parts, max_size=2),
        names=st.lists(parts, min_size=1, max_size=4),
        ending=st.sampled_from([b"", b".mp4"]),
    )
    def check(folders, names, ending):
        nonlocal number
        number += 1
        videos = tmp_path / f"videos{number}"
        folder = os.path.join(os.fsencode(videos), *folders)  # noqa: PTH118 - bytes
        os.makedirs(folder)  # noqa: PTH103
        paths = [os.path.join(folder, name + ending) for name in names]  # noqa: PTH118
        for path in paths:
            with contextlib.suppress(IsADirectoryError):
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        file = tmp_path / "list.txt"
        file.write_bytes(b"".join(os.path.relpath(path, os.fsencode(videos)) + b"\t1\n" for path in paths))
        for annotations in (None, file):
            with refused(UserError):
                split = read_split("folder", videos, annotations, None)
                assert all(video.path is None or video.path.is_file() for video in split.videos)

    check()


def run(*words, encoding="utf-8"):
    """Run a command; its status and what it prints to standard output and standard error."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    error.reconfigure(errors="backslashreplace")  # as Python sets it
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(["shards", *map(str, words)])
    texts = []
    for stream in (out, error):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))
    return status, *texts


def assert_no_traceback(status, out, error):
    assert "Traceback" not in out + error, error[-2000:]
    assert status in (0, 1, 2)
    assert len(error) < 4000


@pytest.mark.parametrize("factor", LENGTHS)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_in_tables(tmp_path, monkeypatch, factor, encoding):
    monkeypatch.setenv("COLUMNS", "200")
    names = st.text(max_size=20) | st.sampled_from(
        ["[/x]", "[red]a[/red]", "a[b]c", ":smile:", "\x1b[2J", "日本", "\udce9", "x" * 500]
    )

    @bounded(10 * factor)
    @given(name=names, source=names, folder=st.sampled_from(["[x]", "caf\xe9", "a b", "plain"]))
    def check(name, source, folder):
        shards = tmp_path / folder
        shards.mkdir(exist_ok=True)
        with ShardWriter(shards / "a-000000.tar") as writer:
            sample = meta(2, 16, 24, class_name=name or "x", source=source)
            writer.write("00000000", [picture(number, 16, 24) for number in range(2)], sample)
        write_manifest(shards, Manifest("toy", name, (name,), EncoderSettings(16, 95), (writer.entry,)))
        for words in (["stats", shards], ["verify", shards], ["preview", shards, "--out", tmp_path / "sheet.png"]):
            status, out, error = run(*words, encoding=encoding)
            assert_no_traceback(status, out, error)
            assert status == 0

    check()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "shards"
    make_shards(folder, (3,), frames=3)
    return folder


def copy_to(folder, whole):
    folder.mkdir(exist_ok=True)
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("factor", LENGTHS)
def test_headers_of_tars(tmp_path, whole, factor):
    (tar,) = whole.glob("*.tar")
    raw = tar.read_bytes()
    headers = [start for start in range(0, len(raw), 512) if raw[start + 257 : start + 262] == b"ustar"]
    places = st.tuples(st.sampled_from(headers), st.integers(0, 511))
    odd = st.binary(min_size=1, max_size=12) | st.sampled_from(
        [b"9" * 12, b"\xff" * 12, b"\x80" + b"\0" * 11, b"-1 ", b"x", b"S", b"L", b"g"]
    )
    shards = copy_to(tmp_path / "shards", whole)

    @bounded(60 * factor)
    @given(
        changes=st.lists(st.tuples(places, odd), min_size=1, max_size=4), length=st.none() | st.integers(0, len(raw))
    )
    def check(changes, length):
        content = bytearray(raw)
        for (header, offset), new in changes:
            content[header + offset : header + offset + len(new)] = new
        (shards / tar.name).write_bytes(content[:length])
        stored = StoredSamples(shards / tar.name)
        for number in range(4):
            sample = stored.read(f"{number:08d}")
            assert sample is None or sample.meta["frames"] >= 1
        for words in (["verify", shards], ["preview", shards, "--out", tmp_path / "sheet.png"]):
            assert_no_traceback(*run(*words))

    check()


@pytest.mark.parametrize("factor", LENGTHS)
@pytest.mark.parametrize("name", [MANIFEST, "index", "quarantine.jsonl"])
def test_documents_of_shards(tmp_path, whole, name, factor):
    (tar,) = whole.glob("*.tar")
    row = {"path": "a.mp4", "reason": "empty", "error": "no bytes"}
    path = {MANIFEST: whole / MANIFEST, "index": index_path(tar)}.get(name)
    document = json.loads(path.read_bytes()) if path else row
    shards = copy_to(tmp_path / "shards", whole)
    target = shards / (path.name if path else name)

    @bounded(15 * factor)
    @given(raw=mutations(document) | documents())
    def check(raw):
        target.write_bytes(raw)
        for words in (["stats", shards], ["verify", shards], ["preview", shards, "--out", tmp_path / "sheet.png"]):
            assert_no_traceback(*run(*words))
        assert_no_traceback(*run("merge", shards, "--out", tmp_path / "merged"))
        if (tmp_path / "merged").exists():
            for left in (tmp_path / "merged").iterdir():
                left.unlink()

    check()
