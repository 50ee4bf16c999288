"""Kinds of files that are no video, told by the name or by the first bytes.

FFmpeg opens many of them all the same: it draws texts (demuxer ``tty``) and shows a picture as a video of one frame.
"""

import os
import re
from pathlib import Path

HEAD_BYTES = 4096
"""Bytes from the start of a file that :func:`kind_of_content` needs."""

POINTER, PAGE, APPLE_DOUBLE = "Git LFS pointer", "HTML page", "AppleDouble file"
TEXT, PICTURE, DATA, ARCHIVE, DOWNLOAD = "text", "picture", "data file", "archive", "unfinished download"
REMEDIES = {
    POINTER: "run git lfs pull",
    PAGE: "download the video again",
    DOWNLOAD: "finish the download",
    APPLE_DOUBLE: "macOS wrote it beside the video; take the file without ._",
}
"""What a user does about a file that stands where a video should be."""

SYSTEM_FOLDERS = frozenset(
    {"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found", "#recycle", "#snapshot"}
)
"""Folders, in lower case, that operating systems and network disks fill with files of their own."""

_SUFFIXES = {
    PICTURE: (
        "arw avif bmp cr2 cur dds dng exr hdr heic heif ico j2c j2k jfif jp2 jpe jpeg jpg jpx jxl nef pam pbm pcx pgm "
        "png pnm ppm psd qoi svg tga thm tif tiff webp xbm xcf xpm"
    ),
    TEXT: (
        "ans asc ass bib cfg css csv diz doc docx htm html ini ipynb json jsonl log lrc m3u m3u8 md nfo pdf py rst rtf "
        "sbv sh smi srt ssa sub tex toml torrent tsv ttml txt url vtt xls xlsx xml yaml yml"
    ),
    DATA: ("arrow db feather h5 hdf5 idx lmdb mat mdb npy npz parquet pickle pkl pt pth safetensors sqlite tfrecord"),
    ARCHIVE: "7z bz2 gz lz4 rar tar tgz xz zip zst",
    DOWNLOAD: "!qb aria2 crdownload download filepart opdownload part partial ytdl",
}
_KIND_OF_SUFFIX = {f".{suffix}": kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_FRAGMENT = re.compile(r"\.(part|ytdl|crdownload|download)([-.~].*)?$|\.part-frag\d+", re.IGNORECASE)
_NAMES = {"thumbs.db": DATA, "desktop.ini": TEXT, "icon\r": PICTURE}
_MAGIC = {
    b"\x00\x05\x16\x07": APPLE_DOUBLE,
    b"version https://git-lfs.github.com/spec/": POINTER,
    b"\xff\xd8\xff": PICTURE,
    b"\x89PNG": PICTURE,
    b"II*\x00": PICTURE,
    b"MM\x00*": PICTURE,
    b"8BPS": PICTURE,
    b"\x00\x00\x00\x0cjP  ": PICTURE,
    b"\x00\x00\x00\x0cJXL ": PICTURE,
    b"\xff\x4f\xff\x51": PICTURE,
    b"%PDF": TEXT,
    b"PK\x03\x04": ARCHIVE,
    b"\x1f\x8b": ARCHIVE,
    b"7z\xbc\xaf": ARCHIVE,
    b"Rar!": ARCHIVE,
    b"\xfd7zXZ": ARCHIVE,
    b"BZh": ARCHIVE,
    b"SQLite format 3": DATA,
    b"\x89HDF": DATA,
    b"\x93NUMPY": DATA,
}
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"heif", b"mif1")
_CONTROL = bytes({*range(32), 127} - {*b"\t\n\f\r\x1a\x1b"})
_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


def kind_of_name(name: str) -> str | None:
    """Return the kind that the name tells, or None if it may be the name of a video."""
    lower = name.lower()
    if lower.startswith("._"):
        return APPLE_DOUBLE
    if _FRAGMENT.search(name):
        return DOWNLOAD
    return _NAMES.get(lower) or _kind_of_suffix(lower)


def is_unfinished(name: str) -> bool:
    """Return whether a browser or yt-dlp gives this name to a file whose download has not ended."""
    return _kind_of_suffix(name.lower()) == DOWNLOAD or _FRAGMENT.search(name) is not None


def _kind_of_suffix(lower: str) -> str | None:
    return _KIND_OF_SUFFIX.get(os.path.splitext(lower)[1])  # noqa: PTH122 - a data set may have a million files


def kind_of_content(head: bytes) -> str | None:
    """Return the kind that the first :data:`HEAD_BYTES` bytes tell, or None if they may be those of a video."""
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind:
        return kind
    if (head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return PICTURE
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _PAGE.match(text):
        return PAGE
    is_text = head and not head.startswith(b"YUV4MPEG2") and len(head.translate(None, _CONTROL)) == len(head)
    return TEXT if is_text or head.startswith((b"\xff\xfe", b"\xfe\xff")) else None


def read_head(path: Path) -> bytes:
    """Return the first bytes of a regular file; none if it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def describe(kind: str) -> str:
    """Return the clause of a message on a file that is no video, with the remedy where there is one."""
    article = "an" if kind[0] in "AHau" else "a"  # AppleDouble, HTML, archive, unfinished
    return f"it is {article} {kind}" + (f": {REMEDIES[kind]}" if kind in REMEDIES else "")
