"""Read ActivityNet's JSON, which HACS Segments has as well, and the csv of HACS Clips.

``activity_net.v1-3.min.json`` and ``HACS_segments_v1.1.1.json`` hold ``{"database": {ID: {"subset": "training",
"annotations": [{"segment": [START, END], "label": CLASS}, ...]}}}``. Videos are ``v_ID.mp4``, in any folders. A video
is one sample with the class of most of its annotated time.

``HACS_clips_v1.1.1.csv`` has the columns classname, youtube_id, subset, start, end, label. Rows with the label 1 are
clips of two seconds, and -1 marks clips without the action. The clips are cut from the videos as ``ID_START_END.mp4``
(docs/data/data_sets.md).
"""

from pathlib import Path

from pydantic import ConfigDict, Field

from data_tools.annotations.importers.official_files import find_official, official_part, read_official_json
from data_tools.annotations.lists import read_table
from data_tools.annotations.split import UNLABELLED, Split
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files
from motionmae.json_text import JsonModel

PARTS = {"train": "training", "val": "validation", "test": "testing"}
_CLIP_COLUMNS = {"classname", "youtube_id", "subset", "start", "end", "label"}


class _Segment(JsonModel):
    model_config = ConfigDict(extra="ignore")

    segment: tuple[float, float]
    label: str


class _Video(JsonModel):
    model_config = ConfigDict(extra="ignore")

    subset: str
    annotations: list[_Segment] = Field(default=[])

    @property
    def class_name(self) -> str:
        """Class with the longest annotated time, the first by name if several have it; "" for a video of the test."""
        seconds: dict[str, float] = {}
        for one in self.annotations:
            seconds[one.label] = seconds.get(one.label, 0) + max(0, one.segment[1] - one.segment[0])
        return min(seconds, key=lambda name: (-seconds[name], name), default="")


class _Database(JsonModel):
    model_config = ConfigDict(extra="ignore")

    database: dict[str, _Video]


def read_activitynet(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part = official_part(split, PARTS, "ActivityNet")
    names = ("activity_net.v1-3.min.json", "activity_net.v1-2.min.json", "HACS_segments_v1.1.1.json")
    file = annotations if annotations.is_file() else find_official(annotations, *names)
    database = read_official_json(file, _Database).database
    class_names = tuple(sorted({one.label for video in database.values() for one in video.annotations}))
    numbers = {name: number for number, name in enumerate(class_names)}
    chosen = {name: video for name, video in database.items() if video.subset == part}
    index = VideoIndex(videos, exclude, [*chosen, *(f"v_{name}" for name in chosen)])
    records = []
    for name, video in chosen.items():
        class_name = video.class_name
        label = numbers.get(class_name, UNLABELLED)
        records.append(index.record([f"v_{name}", name], [class_name], f"v_{name}.mp4", label, class_name, part))
    several = sum(len({one.label for one in video.annotations}) > 1 for video in chosen.values())
    note = f"videos with several classes count as the one with the longest annotated time: {several}"
    notes = (note,) if several else ()
    return Split(tuple(records), class_names, part, str(file), file.name, hash_files([file]), notes=notes)


def read_hacs_clips(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part = official_part(split, PARTS, "HACS Clips")
    file = annotations if annotations.is_file() else find_official(annotations, "HACS_clips_v1.1.1.csv")
    table = read_table(file)
    if not set(table.columns) >= _CLIP_COLUMNS:
        columns = ", ".join(sorted(_CLIP_COLUMNS))
        raise UserError(f"{file} has no header with {columns} and is no list of HACS Clips: download it again")
    rows = [row for row in table.records if row["label"] == "1"]
    class_names = tuple(sorted({row["classname"] for row in rows}))
    numbers = {name: number for number, name in enumerate(class_names)}
    chosen = [(f"{row['youtube_id']}_{row['start']}_{row['end']}", row) for row in rows if row["subset"] == part]
    index = VideoIndex(videos, exclude, [name for name, _ in chosen])
    records = []
    for name, row in chosen:
        class_name = row["classname"]
        path = f"{class_name}/{name}.mp4"
        records.append(index.record([name], [class_name], path, numbers[class_name], class_name, part))
    return Split(tuple(records), class_names, part, str(file), file.name, hash_files([file]))
