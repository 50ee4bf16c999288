"""Types and ranges of the untrusted values in indexes, manifests and rows of a ``.beton``.

The ranges are far beyond the values that ``make_shards`` writes. They limit the memory that a reader allocates before
it compares a value with the stored bytes.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, StringConstraints, model_validator

from motionmae.data.shards.limits import MAX_SAMPLES, MAX_SIDE
from motionmae.json_text import JSON_LIMIT, JsonModel

_TAR_BLOCK = 512
_INDEX_BYTES, _INDEX_BYTES_PER_SAMPLE = 1 << 20, 16 << 10  # a sample takes 250 bytes, with 1000 windows 8 KB

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShardName = Annotated[str, StringConstraints(max_length=255)]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
FileBytes = Annotated[int, Field(ge=1, le=1 << 50)]
Samples = Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
Small = Annotated[int, Field(ge=0, lt=1 << 31)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Offset = Annotated[int, Field(ge=0, lt=1 << 50)]
Label = Annotated[int, Field(ge=-1, lt=1 << 31)]
Fps = Annotated[float, Field(ge=0, le=1e9)]  # 0 is unknown: some older shards have it
Frames = Annotated[int, Field(ge=1, lt=1 << 28)]
Stride = Annotated[int, Field(ge=1, lt=1 << 31)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]

Value = TypeVar("Value")
Column = Annotated[list[Value], Field(fail_fast=True)]  # more faults than one could be larger than the document


def index_limit(samples: int) -> int:
    """Return the largest size of an index in bytes."""
    return min(JSON_LIMIT, _INDEX_BYTES + _INDEX_BYTES_PER_SAMPLE * samples)


class Version(JsonModel):
    """Format version of a manifest or an index. It is read alone if the rest does not fit."""

    model_config = ConfigDict(extra="ignore")

    format_version: Small


class _Sample(JsonModel):
    label: Label
    fps: Fps
    frames: Frames
    stride: Stride
    height: Side
    width: Side


class SampleRow(_Sample):
    """Values of one sample that determine possible frames and crops."""

    windows: tuple[U32, ...]

    @model_validator(mode="after")
    def _check(self) -> "SampleRow":
        if not _fit(self.windows, self.frames):
            raise ValueError("its windows do not start at 0, increase, and stay below its frames")
        return self


class Columns(JsonModel):
    """Columns of an index, see :func:`motionmae.data.shards.format.parse_index`."""

    model_config = ConfigDict(extra="ignore")

    key: Column[Key]
    crc32: Column[U32]
    label: Column[Label]
    fps: Column[Fps]
    frames: Column[Frames]
    stride: Column[Stride]
    height: Column[Side]
    width: Column[Side]
    windows: Column[Column[U32]]
    crcs_offset: Column[Offset]
    crcs_size: Column[U32]
    jpgs_offset: Column[Offset]
    jpgs_size: Column[U32]
    json_offset: Column[Offset]
    json_size: Column[U32]
    flow_offset: Column[Offset]
    flow_size: Column[U32]


class IndexFile(JsonModel):
    """Index of a shard. Further keys are allowed."""

    model_config = ConfigDict(extra="ignore")

    format_version: Small
    name: ShardName
    sha256: Annotated[str, StringConstraints(max_length=100)]  # compared with the manifest
    bytes: FileBytes
    samples: Samples
    columns: Columns

    @model_validator(mode="after")
    def _check(self) -> "IndexFile":
        columns = self.columns.__dict__
        if any(len(column) != self.samples for column in columns.values()):
            raise ValueError(f"it does not hold {self.samples} samples")
        if not all(map(_fit, columns["windows"], columns["frames"])):
            raise ValueError("the windows of a sample do not start at 0, increase, and stay below its frames")
        _check_members(columns, self.bytes)
        return self


class SampleFacts(_Sample):
    """Content of KEY.json. ``make_shards`` writes further keys."""

    model_config = ConfigDict(extra="allow")

    class_name: str
    source: str
    times: Column[float]


def _fit(windows: Sequence[int], frames: int) -> bool:
    """Return whether the first frames of windows start at 0, increase, and stay below ``frames``."""
    if len(windows) == 1:
        return windows[0] == 0
    return bool(windows) and windows[0] == 0 and windows[-1] < frames and sorted(set(windows)) == list(windows)


def _check_members(columns: dict[str, list[Any]], size: int) -> None:
    """Raise ValueError unless the members of each sample lie in the tar and have the size that the frames need."""
    names = ("frames", *(name for name in columns if name.endswith(("_offset", "_size"))))
    of = {name: np.array(columns[name], np.int64) for name in names}
    tables = 4 * (of["frames"] + 1)  # bytes of the offsets at the start of a packed member
    for member in ("crcs", "jpgs", "json", "flow"):
        if (of[f"{member}_offset"] + of[f"{member}_size"] > size).any():
            raise ValueError(f"a KEY.{member} ends beyond the {size} bytes of the shard")
    between = of["jpgs_offset"] - of["crcs_offset"] - of["crcs_size"]  # padding and the header of KEY.jpgs
    if ((between < 0) | (between > 2 * _TAR_BLOCK)).any():
        raise ValueError("a KEY.jpgs does not lie behind its KEY.crcs")
    for member, least in (("crcs", tables - 4), ("jpgs", tables), ("flow", tables * (of["flow_size"] > 0))):
        if (of[f"{member}_size"] < least).any():
            raise ValueError(f"a KEY.{member} is too small for its frames")
