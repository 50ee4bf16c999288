"""What stands where a video should be, by name and by content."""

import os
from pathlib import Path

import pytest

from data_tools.file_kinds import HEAD_BYTES, describe, is_unfinished, kind_of_content, kind_of_name, read_head


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", None),
        ("a.MKV", None),
        ("a", None),
        ("a.JPG", "picture"),
        ("a.txt", "text"),
        ("a.npz", "data file"),
        ("a.tar", "archive"),
        ("._a.mp4", "AppleDouble file"),
        (".a.mp4", None),
        ("a.mp4.part", "unfinished download"),
        ("a.mp4.PART-Frag12", "unfinished download"),
        ("a.f137.mp4.part.ytdl", "unfinished download"),
        ("a.mp4.crdownload.1", "unfinished download"),
        ("a.mp4.crdownload", "unfinished download"),
        ("a.party", None),
        ("part.mp4", None),
        ("Thumbs.db", "data file"),
        ("desktop.ini", "text"),
        ("Icon\r", "picture"),
    ],
)
def test_names(name: str, kind: str | None):
    assert kind_of_name(name) == kind
    assert is_unfinished(name) is (kind == "unfinished download")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", None),
        (b"\0\0\0\x18ftypmp42", None),
        (b"\0\0\0\x18ftypisom", None),
        (b"\x1aE\xdf\xa3\x01\0", None),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"RIFF\0\0\0\0WEBPVP8 ", "picture"),
        (b"XXXX\0\0\0\0WEBPVP8 ", None),
        *((b"\0\0\0\x18ftyp" + brand, "picture") for brand in (b"avif", b"heic", b"heix", b"heif", b"mif1")),
        (b"\0\0\0\x18ftypavis", None),
        (b"\0\0\0\x18xxxxavif", None),
        (b"\xff\xd8\xff\xe0", "picture"),
        (b"\x89PNG\r\n", "picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\0\x05\x16\x07\0\x02", "AppleDouble file"),
        (b"  <!DOCTYPE html><html>", "HTML page"),
        (b"\xef\xbb\xbf<!-- x --> <HTML lang='en'>", "HTML page"),
        (b"<htmlx>", "text"),
        (b"path,label\na.mp4,3\n", "text"),
        (b"\xff\xfea\0b\0", "text"),
        (b"\xfe\xff\0a\0b", "text"),
        (b"text with a control \x01", None),
        (b"text with an escape \x1b[2J\x1a\x0c", "text"),
        (b"del \x7f", None),
        (b"YUV4MPEG2 W64 H48\n", None),
        (b"PK\x03\x04", "archive"),
        (b"%PDF-1.7", "text"),
        (b"SQLite format 3\0", "data file"),
        (b"\x93NUMPY\x01", "data file"),
    ],
)
def test_contents(head: bytes, kind: str | None):
    assert kind_of_content(head) == kind


def test_the_first_bytes_are_read_of_regular_files_only(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x" * 5000)
    assert read_head(tmp_path / "a") == b"x" * 4096
    assert HEAD_BYTES == 4096
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe", Path("/dev/zero")):
        assert read_head(path) == b""


@pytest.mark.parametrize(
    ("kind", "clause"),
    [
        ("picture", "it is a picture"),
        ("text", "it is a text"),
        ("archive", "it is an archive"),
        ("data file", "it is a data file"),
        ("HTML page", "it is an HTML page: download the video again"),
        ("Git LFS pointer", "it is a Git LFS pointer: run git lfs pull"),
        ("unfinished download", "it is an unfinished download: finish the download"),
        ("AppleDouble file", "it is an AppleDouble file: macOS wrote it beside the video; take the file without ._"),
    ],
)
def test_a_clause_says_what_it_is_and_the_remedy(kind: str, clause: str):
    assert describe(kind) == clause
