"""Open video files. Refuse formats that name other files to read, draw text or hold single pictures.

FFmpeg detects a format by content. A playlist or a text with the name ``clip.mp4`` could therefore copy any file of
this machine into a data set. FFmpeg checks the format before it opens a file that a playlist names.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

CONTAINERS = (
    *("mov", "matroska", "avi", "asf", "flv", "live_flv", "mpeg", "mpegts", "mxf", "gxf", "ogg", "rm", "nut", "nsv"),
    *("nuv", "dv", "wtv", "ty", "pva", "pmp", "gif", "apng", "swf", "ivf", "kux", "vivo", "flic", "roq", "smk", "bink"),
    *("thp", "xmv", "filmstrip", "film_cpk", "cine", "r3d", "moflex", "dhav", "ifv", "hxvs", "luodat", "ipmovie"),
)
"""Demuxers of FFmpeg for files that hold their own frames, with those of films, games and surveillance cameras."""
RAW_STREAMS = (
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "vc1", "vc1test", "dirac"),
    *("cavsvideo", "avs2", "avs3", "dnxhd", "mjpeg", "smjpeg", "mpjpeg", "yuv4mpegpipe", "ipu", "apv"),
)
"""Demuxers for the bytes of one video codec without a container."""
SOUND = (
    *("wav", "w64", "aiff", "caf", "au", "mp3", "aac", "ac3", "eac3", "dts", "flac", "ape", "wv", "tta", "amr"),
    *("aa", "aax", "voc"),
)
"""Demuxers for sound. They are opened, so that the message says that there is no video stream."""

PICTURES = ("jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe")
"""Demuxers of single pictures, which detect them by content. FFmpeg's ``image2`` would expand patterns in names."""

STILL_BRANDS = frozenset({"avif", "heic", "heix", "heif", "mif1"})
"""Major brands of pictures in the container of mp4. Animated ones have other brands (``avis``, ``hevc``, ``msf1``)."""

_VIDEOS = (*CONTAINERS, *RAW_STREAMS, *SOUND)
_JPEG = b"\xff\xd8\xff"


class RefusedFormat(Exception):  # noqa: N818 - names a property of the file, not a failure of the program
    """A file has a format that :func:`open_video` does not open. The message is a clause without the file's name."""


def open_video(path: Path, pictures: bool = False) -> Any:
    """Open a file with PyAV. With ``pictures``, a picture opens as a video of one frame.

    Raises:
        RefusedFormat: the file is a playlist, a text or a picture, or has another format that is not a video format.
        av.FFmpegError: the format is unknown, or the file cannot be read.
    """
    formats = (*_VIDEOS, *PICTURES) if pictures else _VIDEOS
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": "file"}
    kind = "jpeg_pipe" if pictures and _is_jpeg(path) else None  # by its name, it would be opened as `image2`
    try:
        # absolute: ffmpeg would read "a:b.mp4" as a protocol; replace: some titles of HMDB51 are not UTF-8
        container = av.open(str(path.absolute()), format=kind, metadata_errors="replace", container_options=options)
    except av.ArgumentError as error:  # EINVAL: not on the list
        raise RefusedFormat("its format is not that of a video (a playlist, a text, a picture or the like)") from error
    if not pictures and container.metadata.get("major_brand") in STILL_BRANDS:
        container.close()
        raise RefusedFormat("it is a picture (AVIF or HEIF)")
    return container


def _is_jpeg(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_JPEG)) == _JPEG
    except OSError:
        return False


def note_on_outside(folder: Path, videos: Sequence[Path]) -> str:
    """Return a sentence on the videos that links, ``..`` or absolute paths place outside of ``folder``; "" if none."""
    root = folder.resolve()
    resolve_folder = functools.cache(Path.resolve)  # a data set has few folders, and network disks are slow
    list_links = functools.cache(_links_in)

    def is_outside(path: Path) -> bool:
        real = path.resolve() if path.name in list_links(path.parent) else resolve_folder(path.parent)
        return not real.is_relative_to(root)

    outside = [path for path in videos if is_outside(path)]
    if not outside:
        return ""
    first = os.fsencode(outside[0]).decode(errors="backslashreplace")
    return f"{len(outside)} of the videos are outside of {folder}, by links or by the list; the first is {first}"


def _links_in(folder: Path) -> frozenset[str]:
    """Return the names of the links in a folder. One scan of the folder costs less than a check of each video."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()
