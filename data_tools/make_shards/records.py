"""Progress of a data set: counts, the record of each finished shard, and the manifest of a finished folder."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.make_shards.shard_plan import STATE, PlannedShard, ShardPlan
from data_tools.quarantine import KEYS
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import ShardEntry, shard_is_complete
from motionmae.data.shards.manifest import Manifest
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import JSON_LIMIT, read_limited


@dataclass
class Counts:
    """Progress of a shard or of the whole data set."""

    videos: int = 0  # processed videos, stored or not
    samples: int = 0  # stored samples: a video, or a segment of a video
    frames: int = 0  # stored frames
    bytes: int = 0  # bytes of the stored frames
    damaged: list[str] = field(default_factory=list)  # videos stored without their damaged packets
    matrices: dict[str, dict[str, str]] = field(default_factory=dict)  # DecodedVideo.matrices by video, if any
    quarantine: list[dict[str, str]] = field(default_factory=list)  # rows of quarantine.jsonl
    kept: list[str] = field(default_factory=list)  # videos whose stored samples stay, as the originals give no better
    set_aside: list[str] = field(default_factory=list)  # damaged shards that were kept under these names
    substituted: list[str] = field(default_factory=list)  # "FILE for FILE" of videos whose first file does not decode

    @property
    def stored(self) -> int:
        """Videos that are stored whole. A video in the quarantine may have its first segments stored."""
        return self.videos - len(self.quarantine)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row["reason"] for row in self.quarantine)

    def add(self, other: "Counts") -> None:
        self.videos += other.videos
        self.samples += other.samples
        self.frames += other.frames
        self.bytes += other.bytes
        self.damaged.extend(other.damaged)
        self.matrices.update(other.matrices)
        self.quarantine.extend(other.quarantine)
        self.kept.extend(other.kept)
        self.set_aside.extend(other.set_aside)
        self.substituted.extend(other.substituted)


@dataclass(frozen=True)
class ShardRecord:
    """Content of ``OUT/.make_shards/NAME.json``, the file that marks a shard as finished."""

    counts: Counts
    entries: tuple[ShardEntry, ...]
    """Manifest entries of the shard, or of the shards of a video in segments. Empty if nothing could be stored."""


def load_record(out: Path, shard: PlannedShard) -> ShardRecord | None:
    """Load the record of a finished shard. Return None if the shard is unfinished, or has changed since."""
    try:
        content = json.loads(read_limited(record_path(out, shard), JSON_LIMIT))  # json keeps names that are not UTF-8
        counts, entries = _parse(content)
        intact = all(shard.has_file(entry.name) and shard_is_complete(out / entry.name, entry) for entry in entries)
        is_valid = _is_valid(counts) and counts.videos == len(shard.videos)
        is_valid = is_valid and counts.samples == sum(entry.samples for entry in entries)
        return ShardRecord(counts, entries) if intact and is_valid else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _parse(content: Any) -> tuple[Counts, tuple[ShardEntry, ...]]:
    counts = Counts(**content["counts"])
    if "entries" not in content:  # a record of an earlier version: one sample per video, in one shard
        entry = content["entry"]
        return replace(counts, samples=counts.stored), (ShardEntry(**entry),) if entry else ()
    return counts, tuple(ShardEntry(**entry) for entry in content["entries"])


def _is_valid(counts: Counts) -> bool:
    numbers = (counts.videos, counts.samples, counts.frames, counts.bytes)
    texts = [*counts.damaged, *counts.substituted, *(row[name] for row in counts.quarantine for name in KEYS)]
    texts += [text for pairs in counts.matrices.values() for pair in pairs.items() for text in pair]
    return all(type(number) is int for number in numbers) and all(isinstance(text, str) for text in texts)


def save_record(out: Path, shard: PlannedShard, record: ShardRecord) -> None:
    counts = {name: value for name, value in vars(record.counts).items() if name not in ("kept", "set_aside")}
    content = {"counts": counts, "entries": [vars(entry) for entry in record.entries]}
    write_atomically(record_path(out, shard), json.dumps(content, sort_keys=True).encode())


def load_records(plan: ShardPlan, out: Path) -> dict[str, ShardRecord]:
    """Load the records of the finished shards, by the name of the shard. This checks each index and each size."""
    loaded = ((shard.name, load_record(out, shard)) for shard in plan.shards)
    return {name: record for name, record in loaded if record}


def load_finished(plan: ShardPlan, out: Path, records: Mapping[str, ShardRecord]) -> Manifest | None:
    """Load the manifest of a finished folder. Return None if it is missing or damaged, or if a shard has changed."""
    with contextlib.suppress(UserError):
        manifest = load_manifest(out)
        return manifest if manifest.shards == finished_entries(plan, records) else None
    return None


def finished_entries(plan: ShardPlan, records: Mapping[str, ShardRecord]) -> tuple[ShardEntry, ...] | None:
    """Return the manifest entries of all planned shards, or None if a shard has no record."""
    if len(records) < len(plan.shards):
        return None
    return tuple(entry for shard in plan.shards for entry in records[shard.name].entries)


def record_path(out: Path, shard: PlannedShard) -> Path:
    return out / STATE / f"{Path(shard.name).stem}.json"
