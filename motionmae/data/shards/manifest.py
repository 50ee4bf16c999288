"""Manifest of a folder of shards. ``manifest.json`` is written last and marks the folder as complete."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from motionmae.data.shards.format import ENCODINGS, FORMAT_VERSION, ORDER_VERSION, ShardEntry, check_version
from motionmae.errors import UserError
from motionmae.files import write_atomically

MANIFEST = "manifest.json"  # file name within a folder of shards


@dataclass(frozen=True)
class EncoderSettings:
    """Settings for decoding the videos and encoding their frames."""

    short_side: int  # pixels of the shorter side
    jpeg_quality: int  # 1 to 100
    stride: int = 1  # distance of stored frames, in source frames
    clips: int = 0  # number of stored windows per video; 0: the whole video is stored
    flow_distance: int = 0
    """Distance in source frames between the two frames of a flow field; 0: no flow is stored."""
    encoding: str = "jpeg"  # encoding of a frame: jpeg, or raw (uint8 RGB)
    window: int = 0  # length of a stored window in source frames; 0: the whole video is stored


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``. The file also stores the property ``samples``."""

    dataset: str  # name of the data set, e.g. k400
    split: str  # e.g. train
    class_names: tuple[str, ...]  # name of each label
    encoder: EncoderSettings
    shards: tuple[ShardEntry, ...]  # sample ids run through the shards in this order
    quarantined: int = 0  # videos of the split that could not be stored (rows of quarantine.jsonl)
    split_file: str = ""  # name of the annotation file of the split
    split_sha256: str = ""  # sha256 of the annotation file
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that determine the bytes, e.g. {"av": "18.1.0"}."""
    order_version: int = ORDER_VERSION
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
    content = {"format_version": FORMAT_VERSION, "samples": manifest.samples, **asdict(manifest)}
    write_atomically(folder / MANIFEST, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def parse_manifest(path: str, raw: bytes) -> Manifest:
    """Parse the content ``raw`` of the manifest at ``path``.

    Raises UserError if the manifest is damaged or has a different format version.
    """
    try:
        content = json.loads(raw)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of shards ({error}): run make_shards again") from error
    check_version(path, version)
    try:
        fields = {key: value for key, value in content.items() if key not in ("format_version", "samples")}
        fields["class_names"] = tuple(fields["class_names"])
        fields["encoder"] = EncoderSettings(**fields["encoder"])
        fields["shards"] = tuple(ShardEntry(**shard) for shard in fields["shards"])
        manifest = Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): run make_shards again") from error
    if manifest.encoder.encoding not in ENCODINGS:
        raise UserError(
            f"{path} says that frames have the encoding {manifest.encoder.encoding}, which is not "
            f"{' or '.join(ENCODINGS)}: make the shards again"
        )
    if content["samples"] != manifest.samples:
        raise UserError(
            f"{path} says {content['samples']} samples, but its shards hold {manifest.samples}: run make_shards again"
        )
    return manifest


def check_whole(manifest: Manifest, shards: Path | str, user: str) -> None:
    """Raise UserError if the shards were made with ``--clips``, even if their videos are short and stored whole."""
    if manifest.encoder.clips:
        raise UserError(
            f"the shards of {shards} hold windows of videos (--clips {manifest.encoder.clips}), but {user} needs whole "
            "videos: make the shards without --clips"
        )
