"""Readers of the data sets' official annotation files, one a file; :func:`read_split` picks the right one."""

import os
from collections import Counter
from pathlib import Path

from data_tools.annotations import folder, hmdb51, k400, ssv2, ucf101
from data_tools.annotations.split import Split, VideoIndex, VideoRecord
from motionmae.errors import UserError

READERS = {"k400": k400.read, "ssv2": ssv2.read, "ucf101": ucf101.read, "hmdb51": hmdb51.read, "folder": folder.read}
"""``read(videos, annotations, split, exclude) -> Split`` of each data set."""

__all__ = ["READERS", "Split", "VideoIndex", "VideoRecord", "read_split"]


def read_split(
    dataset: str, videos: Path, annotations: Path | None, split: str | None, exclude: Path | None = None
) -> Split:
    """The videos of one split of a data set.

    Args:
        dataset: a key of :data:`READERS`.
        videos: folder that holds the videos.
        annotations: folder or file of the official annotations; ``videos`` where None.
        split: name of the split; only ``folder`` may do without.
        exclude: folder below ``videos`` that is not searched (where the shards go).

    Raises:
        UserError: a folder or file is missing, is not what the data set's official one looks like, or names no video
            that exists, or one twice.
    """
    for folder_or_file, option in ((videos, "--videos"), (annotations or videos, "--annotations")):
        if not folder_or_file.exists():
            raise UserError(f"{option} {folder_or_file} does not exist: give the folder you downloaded")
    if not videos.is_dir():
        raise UserError(f"--videos {videos} is not a folder: give the folder that holds the videos")
    listing = READERS[dataset](videos, annotations or videos, split, exclude)
    if not listing.rows:
        raise UserError(f"there is no video in {listing.described}: check --videos, --annotations and --split")
    _refuse_repeated(listing)
    if all(row.path is None for row in listing.rows):
        raise UserError(
            f"none of the {len(listing.rows)} videos of {listing.described} is in {videos} "
            f"(the first looked for is {listing.rows[0].source}): check --videos"
        )
    return listing


def _refuse_repeated(listing: Split) -> None:
    """A video that is listed twice would be trained on twice, or belong to two classes."""
    times = Counter(os.path.normpath(row.path or row.source) for row in listing.rows)
    repeated = [name for name, count in times.items() if count > 1]
    if repeated:
        raise UserError(
            f"{listing.described} names {len(repeated)} videos more than once, the first {repeated[0]}: "
            "leave one line each"
        )
