"""Schemas of the rows of events.jsonl and metrics.jsonl: the values that readers use. A row may have further values."""

from typing import Annotated, Any, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from motionmae.json_text import describe_fault
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row

_Time = Annotated[float, Field(ge=0, le=1e11)]  # seconds since the epoch; more is no date
_Seconds = Annotated[float, Field(ge=-1e11, le=1e11)]  # clocks of nodes differ, so that differences may be negative
_Step = Annotated[int, Field(ge=0, le=2**53)]
_Size = Annotated[float, Field(ge=0, le=1e30)]
_Number = Annotated[float, Field(ge=-1e100, le=1e100)]
_EndReason = Annotated[str, Field(pattern=f"^(?:{'|'.join(reason.value for reason in EndReason)})$")]


class _Row(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]  # inherited by pydantic's rules
    attempt: str
    time: _Time
    step: _Step


class _Event(_Row, total=False):
    kind: Required[str]
    error: str


class _Start(_Event, total=False):
    world: Required[Annotated[int, Field(ge=1, le=2**31)]]
    hosts: Annotated[list[str], Field(min_length=1)]
    host: str
    age: _Seconds
    number: int
    job: str
    restart: int
    start: int
    code: str


class _Ready(_Event):
    total_steps: _Step


class _Resume(_Event, total=False):
    seconds: Required[_Seconds]
    source: Literal["memory", "disk"]  # older versions know only the disk


class _Checkpoint(_Event, total=False):
    blocking: Required[_Seconds]
    seconds: _Seconds
    bytes: _Size


class _Validation(_Event, total=False):
    seconds: Required[_Seconds]
    loss: _Number | None
    top1: _Number | None
    top5: _Number | None
    knn: _Number | None
    videos: _Step
    missing: _Step
    is_best: bool


class _End(_Event, total=False):
    reason: Required[_EndReason]
    again: bool
    inside: bool


class _CorruptSample(_Event):
    reasons: dict[str, _Step]


class _Metrics(_Row, total=False):
    step_seconds: Required[_Seconds]
    data_wait_seconds: Required[_Seconds]
    forward_seconds: _Seconds
    backward_seconds: _Seconds
    optimizer_seconds: _Seconds
    checkpoint_seconds: _Seconds
    memory_copy_seconds: _Seconds
    validation_seconds: _Seconds
    other_seconds: _Seconds
    steps: Annotated[int, Field(ge=1, le=2**53)]
    epoch: Required[_Number]
    clips_per_second: Required[_Number]
    slowest_rank: _Step
    slowest_score: _Number
    loader_ready: _Number


_EVENT: TypeAdapter[Any] = TypeAdapter(_Event)
_EVENTS: dict[str, TypeAdapter[Any]] = {
    Kind.START: TypeAdapter(_Start),
    Kind.READY: TypeAdapter(_Ready),
    Kind.RESUME: TypeAdapter(_Resume),
    Kind.CHECKPOINT: TypeAdapter(_Checkpoint),
    Kind.VALIDATION: TypeAdapter(_Validation),
    Kind.STOP: TypeAdapter(_End),
    Kind.FAILURE: TypeAdapter(_End),
    Kind.CORRUPT_SAMPLE: TypeAdapter(_CorruptSample),
}
_METRICS: TypeAdapter[Any] = TypeAdapter(_Metrics)
_NUMBERS: TypeAdapter[Any] = TypeAdapter(dict[str, _Number | None], config=ConfigDict(strict=True))
"""All values of a metrics row but the attempt. None stands for a number that is not finite."""


def fault_of(row: Row, *, is_event: bool) -> str:
    """Return what is wrong with an event or a metrics row; empty if it fits its schema."""
    kind = row.get("kind")
    try:
        if is_event:
            (_EVENTS.get(kind, _EVENT) if isinstance(kind, str) else _EVENT).validate_python(row)
        else:
            _METRICS.validate_python(row)
            _NUMBERS.validate_python({key: value for key, value in row.items() if key != "attempt"})
    except ValidationError as error:
        return describe_fault(error)
    return ""
