"""The whole layout before the first video is decoded: which video goes where depends on the list and the seed alone.

So the bytes of a shard do not depend on the number of workers, on interruptions, or on other videos' damage: a
quarantined video leaves its place empty. ``OUT/.make_shards/plan.json`` holds what shapes the bytes; a run with other
settings into the same folder is refused.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import simplejpeg

from data_tools.annotations import Split, VideoRecord
from data_tools.decode import FrameSettings
from motionmae.data.shards.format import FORMAT_VERSION
from motionmae.data.shards.manifest import MANIFEST
from motionmae.errors import UserError
from motionmae.files import write_atomically

STATE = ".make_shards"
"""Folder within OUT: the plan, and a record of each finished shard."""
MOST_SAMPLES = 64
"""Videos of a shard by default; K400 at short side 256 makes shards of about 400 MB."""
FEWEST_SHARDS = 16
"""Small data sets get smaller shards by default, so that there are about this many to share and to shuffle."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard and the videos that belong into it."""

    name: str
    """File name, ``SPLIT-000000.tar``."""
    rows: tuple[tuple[str, VideoRecord], ...]
    """(sample key, video), in stored order."""


@dataclass(frozen=True)
class Plan:
    """What a run of make_shards writes."""

    dataset: str
    """Name of the data set."""
    listing: Split
    """The videos."""
    frames: FrameSettings
    """What is stored of each."""
    shards: tuple[ShardPlan, ...]
    """Every shard, the finished ones too."""
    settings: Mapping[str, Any]
    """Everything that shapes the bytes but the libraries."""
    versions: Mapping[str, str]
    """The libraries that shape the bytes."""

    @property
    def videos(self) -> int:
        """Videos of the shards, whether or not they can be stored."""
        return sum(len(shard.rows) for shard in self.shards)

    @property
    def encoding(self) -> str:
        """How frames are stored (motionmae.data.shards.format.ENCODINGS)."""
        return "raw" if self.frames.raw else "jpeg"

    def part(self, number: int, parts: int) -> "Plan":
        """Every ``parts``-th shard from ``number`` on: what one of several machines writes."""
        return replace(self, shards=self.shards[number::parts])


def make_plan(
    dataset: str, listing: Split, frames: FrameSettings, seed: int = 0, samples_per_shard: int | None = None
) -> Plan:
    """Give every video its key and its shard.

    The order is that of hashes of (seed, path): no library's shuffle, whose stream could change with its version.
    """
    if samples_per_shard is None:
        samples_per_shard = min(MOST_SAMPLES, -(-len(listing.rows) // FEWEST_SHARDS))
    if samples_per_shard < 1:
        raise UserError(f"--samples-per-shard {samples_per_shard} is not possible: it must be at least 1")
    rows = sorted(listing.rows, key=lambda row: (_rank(seed, row), row.identity, row.label))
    keyed = [(f"{position:08d}", row) for position, row in enumerate(rows)]
    name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in listing.split)
    shards = tuple(
        ShardPlan(f"{name}-{number:06d}.tar", tuple(keyed[start : start + samples_per_shard]))
        for number, start in enumerate(range(0, len(keyed), samples_per_shard))
    )
    settings = {
        "dataset": dataset,
        "split": listing.split,
        "videos": len(rows),
        "hash_of_the_list": _hash_rows(listing)[:16],
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        **asdict(frames),
        "format_version": FORMAT_VERSION,
    }
    return Plan(dataset, listing, frames, shards, settings, library_versions(frames))


def library_versions(frames: FrameSettings) -> dict[str, str]:
    """The libraries that turn a video into bytes of a shard."""
    flow = {"opencv": cv2.__version__} if frames.flow else {}
    ffmpeg = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return {"av": av.__version__, **ffmpeg, "simplejpeg": simplejpeg.__version__, **flow}


def _rank(seed: int, row: VideoRecord) -> bytes:
    return hashlib.blake2b(f"{seed}:{row.identity}".encode(errors="surrogateescape"), digest_size=16).digest()


def _hash_rows(listing: Split) -> str:
    digest = hashlib.sha256()
    for row in sorted(listing.rows, key=lambda row: (row.identity, row.label)):
        digest.update(json.dumps([row.identity, row.label, row.class_name]).encode())
    return digest.hexdigest()


def write_or_check_plan(plan: Plan, out: Path) -> None:
    """Note the plan in the folder, or hold it against the one that is noted there.

    Raises:
        UserError: the folder cannot be written, or holds shards that were made with other settings.
    """
    path = out / STATE / "plan.json"
    content = {"settings": dict(plan.settings), "versions": dict(plan.versions)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            begun_elsewhere = (out / MANIFEST).exists() or any(out.glob("*.tar"))
            if begun_elsewhere and not path.exists():  # another part may have begun just now
                raise UserError(f"--out {out} holds shards that this command did not begin: choose another folder")
            own = path.with_name(f"plan.{socket.gethostname()}.{os.getpid()}.json")  # all parts may begin at once
            write_atomically(own, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
            own.replace(path)
            return
        begun = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error}): choose another folder") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete {out} and start again") from error
    _refuse_change(out, begun["settings"], content["settings"])


def refuse_other_libraries(plan: Plan, out: Path) -> None:
    """Before more shards are written, hold the libraries against those that wrote the first.

    Raises:
        UserError: another version of a library would write the rest.
    """
    begun = json.loads((out / STATE / "plan.json").read_bytes())
    _refuse_change(out, begun["versions"], plan.versions)


def _refuse_change(out: Path, begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changed = [name for name in sorted({*begun, *asked}) if begun.get(name) != asked.get(name)]
    if changed:
        before, now = (
            ", ".join(f"{name}={str(values.get(name))[:40]}" for name in changed) for values in (begun, asked)
        )
        raise UserError(
            f"--out {out} was begun with {before}, this run asks for {now}: repeat the first, or choose another --out"
        )
