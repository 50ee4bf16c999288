"""Read samples from a memory-mapped FFCV file (``.beton``). FFCV itself is not needed."""

import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash
from pydantic import ValidationError

from motionmae.data.ffcv.format import (
    ALLOCATION,
    BETON_VERSION,
    CUSTOM_FIELD,
    DESCRIPTOR,
    FFCV_VERSION,
    FIELD,
    HEADER,
    ROW,
    FieldArguments,
    row_checksum,
)
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shards.schema import SampleRow
from motionmae.errors import UserError
from motionmae.json_text import parse_json


class BetonReader:
    """Reader of samples of a .beton by their ids, with the methods of motionmae.data.shards.reader.ShardReader.

    The frames that it returns are views of the mapped file: nothing is copied, and all processes of a node share the
    page cache. The file must not be truncated while it is open: reading a missing page kills the process (SIGBUS).
    Raises UserError if the file is missing, is incomplete, has a different format, or was made from shards that
    ``manifest`` does not describe.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        remake = f"write it again with `motionmae shards beton SHARDS --out {path}`"
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._map.madvise(mmap.MADV_RANDOM)  # a page fault then reads one page, not up to megabytes around it
            self.memory: memoryview = memoryview(self._map)
            """The whole file."""
            arguments, samples, allocations = self._parse_header()
        except FileNotFoundError:
            raise UserError(f"data.beton={path} does not exist: {remake}, or leave data.beton empty") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
        except ValueError as error:
            raise UserError(f"{path} is not a .beton of this program ({error}): {remake}") from error
        if arguments.version != BETON_VERSION:
            raise UserError(f"{path} has version {arguments.version} instead of {BETON_VERSION}: {remake}")
        if arguments.fingerprint != manifest.fingerprint:
            raise UserError(f"{path} was not made from the shards of data.shards: {remake}")
        start = HEADER.itemsize + DESCRIPTOR.itemsize
        missing = len(self.memory) - allocations != 2 * samples * ALLOCATION.itemsize  # two regions per sample
        if missing or samples != manifest.samples or start + samples * ROW.itemsize > allocations:
            raise UserError(f"{path} is incomplete, it lacks some of the {manifest.samples} samples: {remake}")
        self.arguments = arguments
        self._rows = np.frombuffer(self.memory, ROW, samples, start)
        self._stride = manifest.encoder.stride

    def _parse_header(self) -> tuple[FieldArguments, int, int]:
        """Return the arguments of the field, the number of samples and the position of the table of allocations."""
        header = np.frombuffer(self.memory, HEADER, 1)[0]
        if (header["version"], header["fields"]) != (FFCV_VERSION, 1):
            raise ValueError("its header has another version or number of fields")
        field = np.frombuffer(self.memory, DESCRIPTOR, 1, HEADER.itemsize)[0]
        if (field["type"], field["name"]) != (CUSTOM_FIELD, FIELD.encode()):
            raise ValueError("it has another field")
        arguments = parse_json(field["arguments"].tobytes().rstrip(b"\0"), FieldArguments)
        return arguments, int(header["samples"]), int(header["allocations"])

    def close(self) -> None:
        """Do nothing: the file is unmapped when the last view of a frame is gone."""

    def _where(self, sample: int) -> str:
        return f"{self.path.name}:{sample}"

    def _bytes(self, sample: int, start: int, size: int) -> memoryview:
        if start + size > len(self.memory):
            detail = f"its row points to byte {start}, beyond the end of the file"
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), detail)
        return self.memory[start : start + size]

    def read_meta(self, sample: int) -> SampleMeta:
        """Read the index entry of a sample. Raises CorruptSample if it is damaged."""
        if not 0 <= sample < len(self._rows):
            raise UserError(f"sample {sample} does not exist: {self.path} holds samples 0 to {len(self._rows) - 1}")
        row = self._rows[sample]
        frames, windows = int(row["frames"]), int(row["windows"])
        table = self._bytes(sample, int(row["table"]), 8 * frames + 4 * windows)
        if row_checksum(row, table) != row["crc"]:
            raise CorruptSample(Reason.CHECKSUM, self._where(sample), "its row was changed")
        numbers = {name: row[name].item() for name in ("label", "fps", "frames", "stride", "height", "width")}
        first_frames = np.frombuffer(table, "<u4", windows, 8 * frames)
        try:
            known = SampleRow(windows=tuple(first_frames.tolist()), **numbers)
        except ValidationError as error:
            detail = f"its row is wrong ({error.errors(include_url=False)[0]['msg']})"
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), detail) from error
        if known.stride != self._stride:
            detail = f"its row has the stride {known.stride}, the manifest says {self._stride}"
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), detail)
        return SampleMeta(
            self.path.name, str(sample), has_flow=False, encoding=self.arguments.encoding, **known.__dict__
        )

    def read_frames(self, sample: int, frame_indices: Sequence[int]) -> list[memoryview]:
        """Return stored frames in the order of ``frame_indices`` after a check of each hash, a repeated frame once."""
        row = self._rows[sample]
        start, size, frames = int(row["ptr"]), int(row["size"]), int(row["frames"])
        blob = self._bytes(sample, start, size)
        offsets = np.frombuffer(self._bytes(sample, start, 4 * (frames + 1)), "<u4")
        hashes = np.frombuffer(self._bytes(sample, int(row["table"]), 8 * frames), "<u8")
        bounds = {number: (int(offsets[number]), int(offsets[number + 1])) for number in frame_indices}
        for number, (low, high) in bounds.items():
            if not low < high <= size:
                raise self._changed(sample, number)
            self._read_ahead(start + low, start + high)
        found = {number: blob[low:high] for number, (low, high) in bounds.items()}
        for number, frame in found.items():
            if xxhash.xxh3_64_intdigest(frame) != hashes[number]:
                raise self._changed(sample, number)
        return [found[number] for number in frame_indices]

    def _changed(self, sample: int, number: int) -> CorruptSample:
        return CorruptSample(Reason.CHECKSUM, self._where(sample), f"frame {number} was changed")

    def _read_ahead(self, start: int, end: int) -> None:
        """Queue reads of the pages from ``start`` to ``end``. Otherwise each page fault would wait for the disk."""
        page = start % mmap.PAGESIZE
        with suppress(OSError):
            self._map.madvise(mmap.MADV_WILLNEED, start - page, end - start + page)

    def read_flow(self, sample: int, frame_indices: Sequence[int]) -> list[memoryview]:
        """Raise UserError, because the file has no optical flow."""
        raise UserError(f"{self.path} holds no optical flow: leave data.beton empty to read the shards")
