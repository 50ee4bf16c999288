"""Choice among the files of a video: the first that can be decoded is stored."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from data_tools.annotations import VideoRecord
from data_tools.decode import DecodedVideo, QuarantineReason, UndecodableVideo
from data_tools.file_kinds import DOWNLOAD, describe, is_unfinished, kind_of_content, read_head


def decode_first(video: VideoRecord, decode: Callable[[Path], Iterator[DecodedVideo]]) -> Iterator[DecodedVideo]:
    """Decode the files of a video until one gives a sample. If none does, raise the UndecodableVideo of the first.

    If a file fails after its first segments, no other file is tried.
    """
    failure = None
    for source, path in video.files:
        has_begun = False
        try:
            if is_unfinished(path.name):  # FFmpeg would decode its first part
                raise UndecodableVideo(QuarantineReason.REFUSED_FORMAT, describe(DOWNLOAD))
            for decoded in decode(path):
                has_begun = True
                yield replace(decoded, source=source)
            return
        except UndecodableVideo as error:
            if has_begun:
                raise
            failure = failure or explain(error, path)
    assert failure is not None, "the video has a file"
    if video.alternatives:
        others = ", ".join(source for source, _ in video.alternatives)
        failure = UndecodableVideo(failure.reason, f"{failure.detail}; nor can {others} be decoded")
    raise failure


def explain(error: UndecodableVideo, path: Path) -> UndecodableVideo:
    """Add to the detail what the file is, if its first bytes are those of a text, a picture or the like."""
    kind = kind_of_content(read_head(path))
    return UndecodableVideo(error.reason, f"{error.detail}; {describe(kind)}") if kind else error
