"""Write safetensors files in the background of a training.

``save_file`` of the safetensors library copies all tensors and holds the interpreter's lock while it writes, which
stops training. A file is a length, a JSON header, and the bytes (https://huggingface.co/docs/safetensors). This
module hashes and writes the bytes without a copy, and every long call releases the lock.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from motionmae.runs.checkpoint_store import FileEntry


def write_tensors(path: Path, tensors: Mapping[str, Tensor], parameters: tuple[str, ...]) -> FileEntry:
    """Write and flush contiguous fp32 CPU tensors, or raise an OSError; the returned entry lists ``parameters``."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for chunk in _chunks(tensors):
            digest.update(chunk)
            size += len(chunk)
            while chunk:
                chunk = chunk[os.write(descriptor, chunk) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(path.name, size, digest.hexdigest(), parameters)


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for tensor in tensors.values():
        content = tensor.view(-1).numpy().data.cast("B")
        for start in range(0, len(content), 8 << 20):
            yield content[start : start + (8 << 20)]


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the little-endian length and the JSON header, padded with spaces to a multiple of 8 bytes."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, (name, tensor.dtype)
        assert tensor.is_contiguous(), name
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
