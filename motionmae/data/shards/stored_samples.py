"""Samples of a shard, found by the headers of its tar. The index is not needed, and a truncated tar gives the rest."""

import os
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field

from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.format import ENCODINGS, load_index
from motionmae.data.shards.schema import SampleFacts, SampleRow, Small
from motionmae.json_text import InvalidJsonError, parse_json

_MEMBER_OF_SUFFIX = {"crcs": "crcs", "json": "json", "flow": "flow", **dict.fromkeys(ENCODINGS.values(), "jpgs")}


class _StoredFacts(SampleFacts, SampleRow):
    source_frames: Small | None = None  # absent in older shards
    damaged_packets: Small = 0
    segment: Small = 0  # absent, as the next value, if the video is one sample
    last_segment: bool = True
    replaced_matrices: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class StoredSample:
    """One sample as the bytes of its tar members."""

    members: Mapping[str, bytes]  # by the name of their columns: crcs, jpgs, json and perhaps flow
    meta: Mapping[str, Any]  # content of KEY.json
    intact: bool  # whether all frames match their checksums

    @property
    def frame_bytes(self) -> int:
        return len(self.members["jpgs"]) - 4 * (self.meta["frames"] + 1)

    @property
    def source_frames(self) -> int:
        """Number of frames that the video gave, stored or not."""
        return int(self.meta["source_frames"] or self.meta["frames"])

    @property
    def damaged_packets(self) -> int:
        return int(self.meta["damaged_packets"])

    @property
    def is_last(self) -> bool:
        """Whether the video ends with this sample."""
        return bool(self.meta["last_segment"])

    @property
    def matrices(self) -> dict[str, str]:
        return dict(self.meta["replaced_matrices"])


class StoredSamples:
    """Readable samples of a shard by key. Empty if the shard does not exist; an unreadable disk raises OSError."""

    def __init__(self, shard: Path):
        self._shard = shard
        self._places: dict[str, dict[str, tuple[int, int]]] = {}  # key -> member -> (offset, size)
        self.exists = shard.is_file()
        self.is_whole = not self.exists or self._scan()  # whether the tar has its end and no unknown part

    @property
    def keys(self) -> list[str]:
        """Keys that have at least one readable header."""
        return list(self._places)

    def may_hold(self, key: str) -> bool:
        """Return whether the shard holds this sample, even unreadable. True if the shard is too damaged to tell."""
        if not self.exists:
            return False
        if self._indexed is not None:
            return key in self._indexed
        return not self.is_whole or key in self._places

    @cached_property
    def _indexed(self) -> frozenset[str] | None:
        """Keys of the index; None if the index is damaged."""
        try:
            return frozenset(load_index(self._shard)[1]["key"])
        except (CorruptSample, OSError):
            return None

    def read(self, key: str) -> StoredSample | None:
        """Read one sample. Return None if the shard does not hold it, or not all of it."""
        places = self._places.get(key, {})
        if not places.keys() >= {"crcs", "jpgs", "json"}:
            return None
        with self._shard.open("rb", buffering=0) as file:
            members = {name: os.pread(file.fileno(), size, offset) for name, (offset, size) in places.items()}
        try:
            facts = parse_json(members["json"], _StoredFacts)
            intact = _frames_are_intact(members, facts.frames)
        except (InvalidJsonError, struct.error):
            return None
        return StoredSample(members, facts.model_dump(), intact)

    def _scan(self) -> bool:
        """Find the members. Return whether the tar is whole."""
        with self._shard.open("rb", buffering=0) as file:
            size, offset = os.fstat(file.fileno()).st_size, 0
            while True:
                header = os.pread(file.fileno(), tarfile.BLOCKSIZE, offset)
                if not header.strip(b"\0"):
                    return len(header) == tarfile.BLOCKSIZE
                try:
                    info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    return False
                start = offset + tarfile.BLOCKSIZE
                key, _, suffix = info.name.partition(".")
                if suffix not in _MEMBER_OF_SUFFIX or start + info.size > size:
                    return False
                self._places.setdefault(key, {})[_MEMBER_OF_SUFFIX[suffix]] = start, info.size
                offset = start + info.size + -info.size % tarfile.BLOCKSIZE


def _frames_are_intact(members: Mapping[str, bytes], frames: int) -> bool:
    """Return whether the frames match KEY.crcs. Raises struct.error if the tables are too short."""
    checksums = struct.unpack(f"<{frames}I", members["crcs"])
    offsets = struct.unpack_from(f"<{frames + 1}I", members["jpgs"])
    content = memoryview(members["jpgs"])
    if (offsets[0], offsets[-1]) != (4 * (frames + 1), len(content)):
        return False
    return list(checksums) == [zlib.crc32(content[low:high]) for low, high in pairwise(offsets)]
