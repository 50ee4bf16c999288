"""Layout of the FFCV files of this program. Reading one needs numpy alone; only the writer imports FFCV.

FFCV defines the header, the field descriptors, the rows and the table of allocations (its ``types.py``). The file has
one field, ``clip``, with one row per sample in the order of sample ids. Each row points to two regions of the file. The
blob is the sample's KEY.jpgs or KEY.rgbs (motionmae.data.shards.format). The table holds the XXH3 hash of each frame as
u64, then the first frame of each window as u32. The row ends in a crc32 over the rest of the row and the table.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shards.schema import Sha256, Small
from motionmae.json_text import JsonModel

BETON_VERSION = 2
"""Version to increment if a reader of the previous version would misread a file. 2 has XXH3 instead of crc32."""

FFCV_VERSION = 2  # of the header, from FFCV 1.0

FIELD = "clip"

CUSTOM_FIELD = 255  # FFCV's number for a field that is not its own

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations", "<u8")]
)
"""Start of the file. ``allocations`` is the position of the table of allocations, which ends the file."""

DESCRIPTOR = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "V1024")])
"""Description of the field, after the header. The rows follow. The arguments are JSON, padded with zeros."""

ALLOCATION = np.dtype([("sample", "<u8"), ("start", "<u8"), ("size", "<u8")])

ROW = np.dtype(
    [
        ("ptr", "<u8"),  # position of the blob; FFCV's BytesDecoder needs the names ptr and size
        ("size", "<u8"),
        ("table", "<u8"),
        ("frames", "<u4"),
        ("windows", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("stride", "<u4"),
        ("label", "<i8"),
        ("fps", "<f8"),
        ("crc", "<u4"),
    ]
)


class FieldArguments(JsonModel):
    """Arguments of the field in the file header."""

    fingerprint: Sha256
    """Fingerprint of the shards' manifest."""
    version: Small
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """Encoding of the frames, a key of :data:`motionmae.data.shards.format.ENCODINGS`. Version 1 had JPEGs only."""
    short_side: Small = 0
    """Pixels of the shorter side to which frames were shrunk; 0: they have the size of the shards' frames."""

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump()).encode()


class StoredClip(NamedTuple):
    """Sample to write to the file."""

    meta: SampleMeta
    blob: Sequence[bytes | memoryview]  # parts of KEY.jpgs or KEY.rgbs; joined, they would be a large copy
    hashes: Sequence[int]  # XXH3 of each frame

    @property
    def table(self) -> bytes:
        """Hashes of the frames as u64, then first frames of the windows as u32."""
        return np.array(self.hashes, "<u8").tobytes() + np.array(self.meta.windows, "<u4").tobytes()


def row_checksum(row: np.void, table: bytes | memoryview) -> int:
    """Compute the crc32 of a row without its field ``crc``, followed by the table of the row."""
    return zlib.crc32(table, zlib.crc32(row.tobytes()[: ROW.fields["crc"][1]]))  # type: ignore[index]
