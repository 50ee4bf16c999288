"""Check a folder of shards: every byte against its checksums, and some frames by decoding them."""

import argparse
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import track

from motionmae.data.jpeg import decode_frame
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, check_size, load_index, sha256_of
from motionmae.data.shards.manifest import Manifest
from motionmae.errors import UserError

_EXAMPLES = """\
examples:
  python data_tools/verify data/toy/train
  python data_tools/verify data/toy/train --decode 64

exit status: 0 all is well, 1 something is damaged (each fault is named), 2 there are no shards to check."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="verify", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="folder of shards (the --out of make_shards)")
    parser.add_argument("--decode", type=int, default=2, help="samples of each shard to decode frames of (%(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads (one a core)")
    options = parser.parse_args(arguments)
    try:
        return _run(options.shards, options.decode, max(1, options.workers))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(folder: Path, decode: int, workers: int) -> int:
    started = time.monotonic()
    manifest = load_manifest(folder)
    faults = find_faults(folder, manifest, decode, workers)
    for fault in faults:
        print(f"damaged: {fault}", file=sys.stderr)
    if faults:
        shards = sorted({fault.where.partition(":")[0] for fault in faults})
        print(
            f"{len(shards)} of {len(manifest.shards)} shards are damaged: copy them again from where they are sound, "
            f"or delete them and repeat the make_shards command, which fills the gaps ({', '.join(shards)})",
            file=sys.stderr,
        )
        return 1
    print(
        f"{folder} is sound: {manifest.samples} samples in {len(manifest.shards)} shards, "
        f"{decimal(sum(shard.bytes for shard in manifest.shards))} read, {time.monotonic() - started:.1f} s"
    )
    return 0


def find_faults(folder: Path, manifest: Manifest, decode: int = 2, workers: int = 1) -> list[CorruptSample]:
    """Everything that is wrong in a folder of shards, in the order of the shards.

    Args:
        folder: folder of shards.
        manifest: what it should hold.
        decode: samples of each shard whose first, middle and last frame are decoded.
        workers: threads.
    """
    console = Console(stderr=True)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(partial(_check_shard, folder, manifest, decode), range(len(manifest.shards)))
        shown = track(found, "checking", len(manifest.shards), console=console, disable=not console.is_terminal)
        return [fault for faults in shown for fault in faults]


def _check_shard(folder: Path, manifest: Manifest, decode: int, number: int) -> list[CorruptSample]:
    entry = manifest.shards[number]
    faults = verify_shard(folder / entry.name, entry)
    return faults or _decode_some(folder, manifest, entry, decode)


def verify_shard(shard: Path, entry: ShardEntry | None = None) -> list[CorruptSample]:
    """Check a shard against its index, and against the manifest's ``entry`` where given; read every byte.

    Returns:
        What is wrong, nothing if all is well. Where the whole shard's sha256 differs, the damaged samples are named.

    Raises:
        UserError: if another format version wrote it.
    """
    try:
        indexed, columns = load_index(shard, entry)
        check_size(shard, indexed)
        with shard.open("rb") as file:
            whole = sha256_of(file)
            if whole == indexed.sha256:
                return []
            faults = []
            rows = zip(columns["key"], columns["jpgs_offset"], columns["jpgs_size"], columns["crc32"], strict=True)
            for key, offset, size, crc in rows:
                if zlib.crc32(os.pread(file.fileno(), size, offset)) != crc:
                    faults.append(CorruptSample(Reason.CHECKSUM, f"{shard.name}:{key}", "its frames were changed"))
    except CorruptSample as fault:
        return [fault]
    except OSError as error:
        return [CorruptSample(Reason.UNREADABLE, shard.name, str(error))]
    detail = f"sha256 is {whole}, its index says {indexed.sha256}"
    return faults or [CorruptSample(Reason.CHECKSUM, shard.name, detail)]


def _decode_some(folder: Path, manifest: Manifest, entry: ShardEntry, decode: int) -> list[CorruptSample]:
    """Decode frames of some samples of one shard, chosen by the shard's hash: others after each change."""
    part = open_reader(folder, Manifest(**{**vars(manifest), "shards": (entry,)}))
    order = sorted(range(entry.samples), key=lambda row: hashlib.sha256(f"{entry.sha256}:{row}".encode()).digest())
    faults = []
    for row in order[:decode]:
        meta = part.read_meta(row)
        for frame in sorted({0, meta.frames // 2, meta.frames - 1}):
            try:
                (jpeg,) = part.read_frames(row, [frame])
                decode_frame(jpeg, meta)
            except CorruptSample as fault:
                faults.append(CorruptSample(fault.reason, fault.where, f"frame {frame}: {fault.detail}"))
    return faults
