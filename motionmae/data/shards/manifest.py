"""``manifest.json``: what a folder of shards holds, written last, so that it marks the folder as complete."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from motionmae.config import DataConfig
from motionmae.data.remote.download import RemoteFolder, is_remote
from motionmae.data.sampler import ORDER_VERSION
from motionmae.data.shards.format import ENCODINGS, FORMAT_VERSION, ShardEntry, check_version
from motionmae.errors import UserError
from motionmae.files import write_atomically

MANIFEST = "manifest.json"
"""File name within a folder of shards."""


@dataclass(frozen=True)
class EncoderSettings:
    """How the videos were turned into stored frames."""

    short_side: int
    """Pixels of the shorter side."""
    jpeg_quality: int
    """1 to 100."""
    stride: int = 1
    """Distance of stored frames, in source frames."""
    clips: int = 0
    """Stored windows a video; 0: the whole video."""
    flow_distance: int = 0
    """Source frames between the two pictures of a stored flow field; 0: no flow stored."""
    encoding: str = "jpeg"
    """How a frame is stored: jpeg, or raw (uint8 RGB)."""
    window: int = 0
    """Source frames of a stored window; 0: the whole video."""


@dataclass(frozen=True)
class Manifest:
    """A folder of shards.

    ``samples`` of the written file is the sum over the shards; it is not a field, so that it cannot be wrong.
    """

    dataset: str
    """Name of the data set, e.g. k400."""
    split: str
    """e.g. train."""
    class_names: tuple[str, ...]
    """Name of each label."""
    encoder: EncoderSettings
    """How frames were stored."""
    shards: tuple[ShardEntry, ...]
    """In the order in which samples are numbered."""
    quarantined: int = 0
    """Videos of the split that could not be stored (rows of quarantine.jsonl)."""
    split_file: str = ""
    """Name of the annotation file the split was read from."""
    split_sha256: str = ""
    """Its sha256."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Libraries that shaped the bytes, e.g. {"av": "18.1.0"}."""
    order_version: int = ORDER_VERSION
    """Order of an epoch at the time of writing (a run's state holds the one it uses)."""

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the stored samples and their numbering: equal for folders that train alike."""
        rows = [(shard.name, shard.sha256, shard.samples) for shard in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``folder/manifest.json``, atomically."""
    content = {"format_version": FORMAT_VERSION, "samples": manifest.samples, **asdict(manifest)}
    write_atomically(folder / MANIFEST, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode(), unique=False)


def load_manifest(folder: Path | str, data: DataConfig | None = None) -> Manifest:
    """Read ``folder/manifest.json``.

    Args:
        folder: of shards; a path, or a URL.
        data: how patient to be with a URL.

    Raises:
        UserError: no folder is named, it is none, has no manifest, another format version wrote it, or it is no
            manifest; behind a URL, ``motionmae.data.remote.download.UnreachableError`` where another time may help.
    """
    if not folder:
        raise UserError("data.shards is empty: add data.shards=FOLDER, the --out of data_tools/make_shards")
    path: Path | str
    try:
        if is_remote(folder):
            remote = RemoteFolder(str(folder), data or DataConfig())
            path = remote.address(MANIFEST)
            raw = remote.read(MANIFEST)
        else:
            path = Path(folder) / MANIFEST
            if not path.parent.is_dir():
                raise UserError(f"the folder of shards {path.parent} does not exist: give the --out of make_shards")
            raw = path.read_bytes()
        content = json.loads(raw)
        version = content["format_version"]
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}, which is written last: run make_shards again to finish it, or copy it"
        ) from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no manifest of shards ({error}): run make_shards again") from error
    check_version(path, version)
    try:
        manifest = _parse(content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): run make_shards again") from error
    if manifest.encoder.encoding not in ENCODINGS:
        raise UserError(
            f"{path}: frames stored as {manifest.encoder.encoding} cannot be read, only {' and '.join(ENCODINGS)}"
        )
    if content["samples"] != manifest.samples:
        raise UserError(f"{path} says {content['samples']} samples, its shards hold {manifest.samples}: make it again")
    return manifest


def check_whole(manifest: Manifest, shards: Path | str, user: str) -> None:
    """Refuse shards made with ``--clips``, even where their videos are so short that all of them are whole.

    Args:
        manifest: theirs.
        shards: where they are, for the message.
        user: what needs whole videos, likewise.

    Raises:
        UserError: they were made with it.
    """
    if manifest.encoder.clips:
        raise UserError(
            f"the shards of {shards} hold windows of videos (--clips {manifest.encoder.clips}), and {user} needs whole "
            "ones: make them without --clips"
        )


def _parse(content: Mapping[str, Any]) -> Manifest:
    fields = {key: value for key, value in content.items() if key not in ("format_version", "samples")}
    fields["class_names"] = tuple(fields["class_names"])
    fields["encoder"] = EncoderSettings(**fields["encoder"])
    fields["shards"] = tuple(ShardEntry(**shard) for shard in fields["shards"])
    return Manifest(**fields)
