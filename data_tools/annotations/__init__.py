"""Read the official annotation files of the data sets."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_tools.annotations import folder
from data_tools.annotations.importers import diving48, epic, jester, kinetics, moments, ssv2
from data_tools.annotations.importers.activitynet_hacs import read_activitynet, read_hacs_clips
from data_tools.annotations.importers.ucf101_hmdb51 import read_hmdb51, read_ucf101
from data_tools.annotations.list_labels import note_on_similar
from data_tools.annotations.split import Split, VideoRecord
from data_tools.reporting import name_file
from motionmae.data.video.open_video import note_on_outside
from motionmae.errors import UserError
from motionmae.text import excerpt

READERS = {
    **{f"k{classes}": kinetics.reader(classes) for classes in kinetics.CLASSES},
    "ssv2": ssv2.read,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "moments": moments.read,
    "diving48": diving48.read,
    "jester": jester.reader("jester"),
    "ssv1": jester.reader("something-something"),
    "activitynet": read_activitynet,
    "hacs_clips": read_hacs_clips,
    "epic_verbs": epic.reader("verb"),
    "epic_nouns": epic.reader("noun"),
    "folder": folder.read,
}
"""Maps a data set to its reader, ``read(videos, annotations, split, exclude) -> Split``."""

__all__ = ["READERS", "Split", "VideoRecord", "read_split"]


@name_file()
def read_split(
    dataset: str,
    videos: Path,
    annotations: Path | None,
    split: str | None,
    exclude: Path | None = None,
    images: bool = False,
) -> Split:
    """Read one split of a data set with the reader of the data set.

    Args:
        annotations: folder or file of the official annotations; by default ``videos``.
        split: name of the split; only the data set ``folder`` does not require it.
        exclude: folder within ``videos`` that is not searched (the folder of the shards).
        images: whether pictures count as videos, only for the data set ``folder``.

    Raises:
        UserError: a folder or file is missing, unreadable or malformed, no video exists, or a video is listed twice.
    """
    try:
        return _read_split(dataset, videos, annotations, split, exclude, images)
    except OSError as error:  # also of Path.exists, where a folder may not be entered or a name is too long
        reason = f"{error.filename or videos} cannot be read ({error.strerror or error})"
        raise UserError(f"{reason}: check the name, and the permissions of its folders") from error


def _read_split(
    dataset: str, videos: Path, annotations: Path | None, split: str | None, exclude: Path | None, images: bool
) -> Split:
    for folder_or_file, option in ((videos, "--videos"), (annotations or videos, "--annotations")):
        if not folder_or_file.exists():
            raise UserError(f"{option} {folder_or_file} does not exist: give the folder that you downloaded")
    if not videos.is_dir():
        raise UserError(f"--videos {videos} is not a folder: give the folder that holds the videos")
    if images and dataset != "folder":
        raise UserError(f"--images is for the data set folder, not {dataset}, which has only videos: leave it out")
    reader = partial(folder.read, images=True) if images else READERS[dataset]
    result = reader(videos, annotations or videos, split, exclude)
    if not result.videos:
        found = "".join(f"; {note}" for note in result.notes)
        raise UserError(f"no video is listed in {result.description}: check --videos, --annotations and --split{found}")
    counts = Counter(os.path.normpath(video.path or video.source) for video in result.videos)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:  # the video would be used twice in an epoch, or have two classes
        listed = f"{result.description} names {len(duplicates)} of its videos more than once"
        raise UserError(f"{listed}, first {excerpt(duplicates[0])}: keep one line for each video")
    if all(video.path is None for video in result.videos):
        listed = f"the {len(result.videos)} videos of {result.description}"
        raise UserError(
            f"none of {listed} is in {videos} (the first is {excerpt(result.videos[0].source)}): check --videos"
        )
    paths = [path for video in result.videos for _, path in video.files]
    notes = (_note_on_alternatives(result.videos), note_on_outside(videos, paths))
    return replace(result, notes=(*result.notes, *note_on_similar(result.class_names), *filter(None, notes)))


def _note_on_alternatives(videos: Sequence[VideoRecord]) -> str:
    """Return a sentence on the videos with several files; "" if there are none."""
    several = [video for video in videos if video.alternatives]
    if not several:
        return ""
    names = " before ".join(source for source, _ in several[0].files)
    return f"videos with several files, of which the first that decodes is stored: {len(several)}, for example {names}"
