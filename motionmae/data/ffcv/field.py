"""The field of clips for FFCV's writer and FFCV's own loader. This module imports FFCV."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.bytes import BytesDecoder

from motionmae.data.ffcv.format import ROW, FieldArguments, StoredClip, row_checksum
from motionmae.json_text import parse_json


class ClipField(Field):
    """FFCV field that stores a video."""

    def __init__(self, arguments: FieldArguments):
        self.arguments = arguments

    @property
    def metadata_type(self) -> np.dtype:
        return ROW

    @staticmethod
    def from_binary(binary: np.ndarray) -> "ClipField":
        """Parse the field's arguments in the file header. Raises ValueError if another program wrote the header."""
        return ClipField(parse_json(binary.tobytes().rstrip(b"\0"), FieldArguments))

    def to_binary(self) -> np.void:
        content = self.arguments.to_bytes()
        binary = np.zeros(1, ARG_TYPE)[0]
        binary[0][: len(content)] = np.frombuffer(content, np.uint8)
        return binary

    def encode(
        self, destination: np.ndarray, clip: StoredClip, malloc: Callable[[int], tuple[int, np.ndarray]]
    ) -> None:
        """Write the blob and the table of a sample to a page, and its row to ``destination``."""
        meta, table = clip.meta, clip.table
        row = np.zeros(1, ROW)
        for name in ("frames", "height", "width", "stride", "label", "fps"):
            row[name] = getattr(meta, name)
        row["windows"], row["size"] = len(meta.windows), sum(map(len, clip.blob))
        row["table"], region = malloc(len(table))  # directly before the offsets of the blob: one read gets both
        region[:] = np.frombuffer(table, np.uint8)
        row["ptr"], region = malloc(row["size"][0])
        place = 0
        for part in clip.blob:
            region[place : place + len(part)] = np.frombuffer(part, np.uint8)
            place += len(part)
        row["crc"] = row_checksum(row[0], table)
        destination[:] = row

    def get_decoder_class(self) -> type[Any]:
        """Return FFCV's BytesDecoder, with which FFCV's own loader returns undecoded blobs."""
        return BytesDecoder
