"""Read Diving48: ``Diving48_V2_{train,test}.json`` (or ``Diving48_{train,test}.json``) and ``Diving48_vocab.json``.

The lists have entries ``{"vid_name": NAME, "label": NUMBER, ...}``. The vocabulary is a list with the parts of each
class name: take-off, somersaults, twists, position. Videos are ``rgb/NAME.mp4``.
"""

from pathlib import Path

from pydantic import ConfigDict

from data_tools.annotations.importers.official_files import find_official, official_part, read_official_json
from data_tools.annotations.split import Split
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files
from motionmae.json_text import JsonModel


class _Dive(JsonModel):
    """Entry of a list, which also has the first and the last frame of the dive in the original video."""

    model_config = ConfigDict(extra="ignore")

    vid_name: str
    label: int


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part = official_part(split, {"train": "train", "test": "test", "val": "test"}, "Diving48")
    file = find_official(annotations, f"Diving48_V2_{part}.json", f"Diving48_{part}.json")
    vocabulary = find_official(annotations, "Diving48_vocab.json")
    class_names = tuple(" ".join(parts) for parts in read_official_json(vocabulary, list[list[str]]))
    dives = read_official_json(file, list[_Dive])
    index = VideoIndex(videos, exclude, [dive.vid_name for dive in dives])
    records = []
    for dive in dives:
        if not 0 <= dive.label < len(class_names):
            lacking = f"{vocabulary.name} has no class {dive.label} ({dive.vid_name})"
            raise UserError(f"{file}: {lacking}: download both files again")
        name, class_name = f"{dive.vid_name}.mp4", class_names[dive.label]
        records.append(index.record([dive.vid_name], [], name, dive.label, class_name, part))
    return Split(tuple(records), class_names, part, str(file), file.name, hash_files([file, vocabulary]))
