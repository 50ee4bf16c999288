"""Manifest of a folder of shards. ``manifest.json`` is written last and marks the folder as complete."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from motionmae.data.shards.format import ENCODINGS, FORMAT_VERSION, ORDER_VERSION, ShardEntry, check_version
from motionmae.data.shards.schema import MAX_SIDE, Small, Stride, Version
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, JsonModel, parse_json

_SHARD_NAME = re.compile(r"[^/\x00-\x1f\x7f]+\.tar")
Chroma = Literal["420", "444"]
_HALF: Final = "420"
MANIFEST = "manifest.json"  # file name within a folder of shards
MAX_NOTES = 10_000  # videos with a note in a manifest, which every rank reads


@dataclass(frozen=True)
class EncoderSettings:
    """Settings for decoding the videos and encoding their frames."""

    __pydantic_config__: ClassVar[ConfigDict] = JsonModel.model_config

    short_side: Annotated[int, Field(ge=1, le=MAX_SIDE)]  # pixels of the shorter side
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]
    stride: Stride = 1  # distance of stored frames, in source frames
    clips: Small = 0  # number of stored windows per video; 0: the whole video is stored
    flow_distance: Small = 0
    """Distance in source frames between the two frames of a flow field; 0: no flow is stored."""
    encoding: str = "jpeg"  # encoding of a frame: jpeg, or raw (uint8 RGB)
    window: Small = 0  # length of a stored window in source frames; 0: the whole video is stored
    chroma: Chroma = _HALF  # subsampling of the JPEGs; 444 is used where a video has so much
    segment_seconds: Annotated[float, Field(ge=0)] = 0
    """Length of the segments of videos that are samples of their own; 0: a video is one sample."""


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``. The file also stores the property ``samples``."""

    __pydantic_config__: ClassVar[ConfigDict] = JsonModel.model_config

    dataset: str  # name of the data set, e.g. k400
    split: str  # e.g. train
    class_names: Annotated[tuple[str, ...], Field(fail_fast=True)]  # name of each label
    encoder: EncoderSettings
    shards: Annotated[tuple[ShardEntry, ...], Field(fail_fast=True)]  # sample ids run through the shards in this order
    quarantined: Small = 0  # videos of the split that could not be stored (rows of quarantine.jsonl)
    split_file: str = ""  # name of the annotation file of the split
    split_sha256: str = ""  # sha256 of the annotation file
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that determine the bytes, e.g. {"av": "18.1.0"}."""
    replaced_matrices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Videos with an unusual tag of matrix coefficients, e.g. {"a.mp4": {"ictcp": "bt601"}}: the tag, and what was used
    in its place. At most MAX_NOTES videos; KEY.json says the same of each video. Absent from the file if empty."""
    order_version: Small = ORDER_VERSION
    """ORDER_VERSION at the time of writing. A run uses the version in its own state instead."""

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the stored samples and their ids. Folders with equal fingerprints give identical training."""
        rows = [(shard.name, shard.sha256, shard.samples) for shard in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content: dict[str, Any] = {"format_version": FORMAT_VERSION, "samples": manifest.samples, **asdict(manifest)}
    for name in ("chroma", "segment_seconds"):
        if getattr(manifest.encoder, name) == getattr(EncoderSettings, name):
            del content["encoder"][name]  # as in manifests of programs that know no other value, which they can read
    notes = sorted(content.pop("replaced_matrices").items())[:MAX_NOTES]
    if notes:
        content["replaced_matrices"] = dict(notes)
    write_atomically(folder / MANIFEST, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


@dataclass(frozen=True)
class _ManifestFile(Manifest):
    """Manifest with the further keys of the file."""

    format_version: Small = 0
    stored_samples: Annotated[Small, Field(alias="samples")] = 0

    @property
    def manifest(self) -> Manifest:
        return Manifest(**{one.name: getattr(self, one.name) for one in fields(Manifest)})


def parse_manifest(path: str, raw: bytes) -> Manifest:
    """Parse the content ``raw`` of the manifest at ``path``.

    Raises UserError if the manifest is damaged or has a different format version.
    """
    try:
        content = parse_json(raw, _ManifestFile)
    except InvalidJsonError as error:
        check_version(path, _parse_version(path, raw))
        raise UserError(f"{path} is damaged ({error}): run make_shards again") from error
    check_version(path, content.format_version)
    manifest = content.manifest
    for shard in manifest.shards:
        if not _SHARD_NAME.fullmatch(shard.name):
            raise UserError(f"{path} has a shard with the invalid name {shard.name!r}: make the shards again")
    if manifest.encoder.encoding not in ENCODINGS:
        raise UserError(
            f"{path} says that frames have the encoding {manifest.encoder.encoding[:20]}, which is not "
            f"{' or '.join(ENCODINGS)}: make the shards again"
        )
    if content.stored_samples != manifest.samples:
        raise UserError(
            f"{path} says {content.stored_samples} samples, but its shards hold {manifest.samples}: "
            "run make_shards again"
        )
    return manifest


def _parse_version(path: str, raw: bytes) -> int:
    try:
        return parse_json(raw, Version).format_version
    except InvalidJsonError as error:
        raise UserError(f"{path} is not a manifest of shards ({error}): run make_shards again") from error


def check_whole(manifest: Manifest, shards: Path | str, user: str) -> None:
    """Raise UserError if the shards hold parts of videos, even if all videos are short and were stored whole."""
    encoder = manifest.encoder
    if encoder.clips:
        raise UserError(
            f"the shards of {shards} hold windows of videos (--clips {encoder.clips}), but {user} needs whole "
            "videos: make the shards without --clips"
        )
    check_one_sample_per_video(manifest, shards, user)


def check_one_sample_per_video(manifest: Manifest, shards: Path | str, user: str) -> None:
    """Raise UserError if the shards were made with ``--segment-seconds``."""
    seconds = manifest.encoder.segment_seconds
    if seconds:
        raise UserError(
            f"the shards of {shards} hold segments of videos (--segment-seconds {seconds:g}), which {user} would take "
            "for whole videos: make the shards without --segment-seconds, for long videos with a larger --stride"
        )
