"""Read the official annotation files of the data sets."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from data_tools.annotations import folder, k400, ssv2
from data_tools.annotations.split import Split, VideoIndex, VideoRecord
from data_tools.annotations.ucf101_hmdb51 import read_hmdb51, read_ucf101
from motionmae.data.open_video import note_on_outside
from motionmae.errors import UserError

READERS = {"k400": k400.read, "ssv2": ssv2.read, "ucf101": read_ucf101, "hmdb51": read_hmdb51, "folder": folder.read}
"""Maps a data set to its reader, ``read(videos, annotations, split, exclude) -> Split``."""

__all__ = ["READERS", "Split", "VideoIndex", "VideoRecord", "read_split"]


def read_split(
    dataset: str, videos: Path, annotations: Path | None, split: str | None, exclude: Path | None = None
) -> Split:
    """Read one split of a data set with the reader of the data set.

    Args:
        annotations: folder or file of the official annotations; by default ``videos``.
        split: name of the split; only the data set ``folder`` does not require it.
        exclude: folder within ``videos`` that is not searched (the folder of the shards).

    Raises:
        UserError: a folder or file is missing or malformed, no video exists, or a video is listed twice.
    """
    for folder_or_file, option in ((videos, "--videos"), (annotations or videos, "--annotations")):
        if not folder_or_file.exists():
            raise UserError(f"{option} {folder_or_file} does not exist: give the folder that you downloaded")
    if not videos.is_dir():
        raise UserError(f"--videos {videos} is not a folder: give the folder that holds the videos")
    result = READERS[dataset](videos, annotations or videos, split, exclude)
    if not result.videos:
        raise UserError(f"no video is listed in {result.description}: check --videos, --annotations and --split")
    counts = Counter(os.path.normpath(video.path or video.source) for video in result.videos)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:  # the video would be used twice in an epoch, or have two classes
        listed = f"{result.description} names {len(duplicates)} videos more than once"
        raise UserError(f"{listed}, first {duplicates[0]}: keep one line for each video")
    if all(video.path is None for video in result.videos):
        listed = f"the {len(result.videos)} videos of {result.description}"
        raise UserError(f"none of {listed} is in {videos} (the first is {result.videos[0].source}): check --videos")
    note = note_on_outside(videos, [video.path for video in result.videos if video.path is not None])
    return replace(result, notes=(*result.notes, *filter(None, [note])))
