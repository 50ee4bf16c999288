"""Check a folder of shards: compare every byte with the checksums, and decode some frames."""

import argparse
import hashlib
import os
import sys
import time
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from pathlib import Path
from random import Random

from rich.filesize import decimal

from data_tools.reporting import name_file, progress_bar
from motionmae.commands.app import Command
from motionmae.data.jpeg import decode_frame
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, check_size, load_index
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import LocalFolder, ShardReader
from motionmae.text import say

_EXAMPLES = """\
examples:
  motionmae shards verify data/toy/train
  motionmae shards verify data/toy/train --decode 64

exit status: 0 the shards are intact, 1 there is damage (every fault is printed), 2 there are no shards."""

_REMEDIES = {
    "damaged": "copy them again from an intact folder, or delete them and repeat the command that made them",
    "unreadable": "check their permissions and their disk, and verify them again",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards (--out of `motionmae shards make`)")
    parser.add_argument("--decode", type=int, default=2, help="samples per shard to decode (%(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads (one per core)")


@name_file()
def run(arguments: argparse.Namespace) -> int:
    started, folder = time.monotonic(), arguments.shards
    manifest = load_manifest(folder)
    faults = find_faults(folder, manifest, arguments.decode, max(1, arguments.workers))
    shards: defaultdict[str, set[str]] = defaultdict(set)  # by a key of _REMEDIES
    for fault in faults:
        say(f"damaged: {fault}", file=sys.stderr)
        state = "unreadable" if fault.reason is Reason.UNREADABLE else "damaged"
        shards[state].add(fault.where.partition(":")[0])
    for state, names in shards.items():
        count = f"{len(names)} of {len(manifest.shards)} shards are {state}"
        say(f"{count}: {_REMEDIES[state]} ({', '.join(sorted(names))})", file=sys.stderr)
    if faults:
        return 1
    say(
        f"{folder} is intact: {manifest.samples} samples in {len(manifest.shards)} shards, "
        f"{decimal(sum(shard.bytes for shard in manifest.shards))} read, {time.monotonic() - started:.1f} s"
    )
    return 0


def find_faults(folder: Path, manifest: Manifest, decode: int = 2, workers: int = 1) -> list[CorruptSample]:
    """Return all problems in shard order. Decode the first, middle and last frame of ``decode`` samples per shard."""
    reader = ShardReader(LocalFolder(folder, ()), manifest)  # a missing shard is a problem to return
    firsts = accumulate((entry.samples for entry in manifest.shards), initial=0)

    def check(entry: ShardEntry, first: int) -> list[CorruptSample]:
        return verify_shard(folder / entry.name, entry) or _decode_some(reader, first, decode, entry)

    with ThreadPoolExecutor(workers) as pool, progress_bar() as bar:
        found = bar.track(pool.map(check, manifest.shards, firsts), len(manifest.shards), description="checking")
        return list(chain.from_iterable(found))


def verify_shard(shard: Path, entry: ShardEntry | None = None) -> list[CorruptSample]:
    """Check every byte of a shard against its index, and the index against the manifest's ``entry`` if given.

    Return the problems: one for each damaged sample if the sha256 differs, and none if the shard is intact. Raise
    UserError if the shard has a different format version.
    """
    try:
        indexed, columns = load_index(shard, entry)
        check_size(shard, indexed)
        with shard.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest()
            if whole == indexed.sha256:
                return []
            rows = zip(columns["key"], columns["jpgs_offset"], columns["jpgs_size"], columns["crc32"], strict=True)
            faults = [
                CorruptSample(Reason.CHECKSUM, f"{shard.name}:{key}", "its frames have changed")
                for key, offset, size, crc in rows
                if zlib.crc32(os.pread(file.fileno(), size, offset)) != crc
            ]
    except CorruptSample as fault:
        return [fault]
    except OSError as error:
        return [CorruptSample(Reason.UNREADABLE, shard.name, str(error))]
    detail = f"sha256 is {whole}, but its index has {indexed.sha256}"
    return faults or [CorruptSample(Reason.CHECKSUM, shard.name, detail)]


def _decode_some(reader: ShardReader, first: int, decode: int, entry: ShardEntry) -> list[CorruptSample]:
    """Choose ``decode`` samples of a shard by its hash, decode frames of each, and return the problems.

    ``first`` is the id of the shard's first sample.
    """
    faults = []
    for row in Random(entry.sha256).sample(range(entry.samples), min(max(0, decode), entry.samples)):
        try:
            meta = reader.read_meta(first + row)
        except CorruptSample as fault:
            return [fault]
        for frame in sorted({0, meta.frames // 2, meta.frames - 1}):
            try:
                (jpeg,) = reader.read_frames(first + row, [frame])
                decode_frame(jpeg, meta)
            except CorruptSample as fault:
                faults.append(CorruptSample(fault.reason, fault.where, f"frame {frame}: {fault.detail}"))
    return faults


COMMAND = Command(add_arguments, run, description=__doc__ or "", epilog=_EXAMPLES)
