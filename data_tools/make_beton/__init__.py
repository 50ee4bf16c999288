"""Write a folder of shards as one FFCV file (.beton)."""

import argparse
import multiprocessing
import queue
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import simplejpeg
from rich.filesize import decimal

from data_tools.reporting import damage_as_user_error, progress_bar
from motionmae.commands.app import Command
from motionmae.data.ffcv.decoder import BetonReader, load_format
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import load_index, pack_frames
from motionmae.data.shards.manifest import Manifest
from motionmae.errors import UserError
from motionmae.files import atomic_path, output_file
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.data.ffcv.format import StoredClip

_DESCRIPTION = """\
Write a folder of shards as one FFCV file (.beton) for the local disk of a node (docs/ffcv.md).

The JPEGs are checked and copied unchanged, in the order of sample ids. A run with data.beton gets the same clips as
from the shards. The file gets its name when it is complete."""

_EXAMPLES = """\
examples:
  motionmae shards beton data/toy/train --out data/toy/train.beton
  motionmae shards beton data/k400/train --out /local/k400_train.beton
then train; the folder of the shards is still needed for its manifest.json:
  motionmae pretrain --config vitb_k400 data.shards=data/k400/train data.beton=/local/k400_train.beton

exit status: 0 the file is written (or exists already), 2 wrong input or damaged shards, 130 stopped by Ctrl-C."""

_MIN_PAGE, _MAX_PAGE = 2**21, 2**31  # FFCV's limits: a power of two from 2 MiB to below 4 GiB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards (--out of `motionmae shards make`)")
    parser.add_argument("--out", type=output_file, required=True, help="file to write, NAME.beton")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


@damage_as_user_error()
def run(arguments: argparse.Namespace) -> int:
    shards, out = arguments.shards, arguments.out
    load_format()
    manifest = load_manifest(shards)
    if not manifest.samples:
        raise UserError(f"{shards} holds no samples: make shards of your videos first")
    if out.suffix != ".beton":
        raise UserError(f"--out {out} does not end in .beton: choose another name")
    if out.exists() and not arguments.force:
        try:
            BetonReader(out, manifest)
        except UserError:
            raise UserError(f"{out} holds other data: give --force to replace it, or another --out") from None
        say(f"{out} is complete: {manifest.samples} samples of {shards}; nothing to do")
        return 0
    started = time.monotonic()
    try:
        with progress_bar() as bar:
            task = bar.add_task("samples", total=manifest.samples)
            page = write_beton(shards, manifest, out, lambda: bar.advance(task))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): free space and run the command again") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped: {out} was not written") from None
    size, seconds = out.stat().st_size, time.monotonic() - started
    say(
        f"{out}: {manifest.samples} samples, {decimal(size)} in pages of {decimal(page)}, "
        f"{seconds:.1f} s ({decimal(int(size / seconds))}/s)"
    )
    return 0


class _Clips:
    """Samples in the order of their ids, as FFCV's writer reads them. Every frame is checked."""

    def __init__(self, shards: Path, manifest: Manifest, advance: Callable[[], None]):
        self._reader = open_reader(shards, manifest)
        self._advance = advance

    def __getitem__(self, sample: int) -> "tuple[StoredClip]":
        """Return a sample as a tuple of one field. Raise CorruptSample if a frame is damaged or has another size."""
        meta = self._reader.read_meta(sample)
        jpegs = self._reader.read_frames(sample, range(meta.frames))
        for number, jpeg in enumerate(jpegs):
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
                if (height, width) != (meta.height, meta.width):
                    raise ValueError(f"{height} x {width} pixels, not {meta.height} x {meta.width}")
            except ValueError as error:
                raise CorruptSample(Reason.DECODE, meta.where, f"frame {number}: {error}") from error
        self._advance()
        blob = b"".join(pack_frames([bytes(jpeg) for jpeg in jpegs]))
        return (load_format().StoredClip(meta, blob, [zlib.crc32(jpeg) for jpeg in jpegs]),)


def page_size(shards: Path, manifest: Manifest) -> int:
    """Choose the page size in bytes, a power of two, that gives the smallest file. Every sample must fit in a page.

    FFCV starts a new page when a sample does not fit in the current page. Small pages waste a large part of each page.
    Large pages waste the end of the last page.

    Raises:
        CorruptSample: a shard is missing, or its index is damaged.
        UserError: a sample is too large for FFCV's largest page.
    """
    sizes: list[int] = []
    for entry in manifest.shards:
        _, columns = load_index(shards / entry.name, entry)
        rows = zip(columns["jpgs_size"], columns["frames"], columns["windows"], strict=True)
        sizes += [size + 4 * (frames + len(windows)) for size, frames, windows in rows]
    if (largest := max(sizes)) > _MAX_PAGE:
        raise UserError(f"a sample of {decimal(largest)} exceeds FFCV's largest page: train from the shards")
    pages = [1 << power for power in range(_MIN_PAGE.bit_length() - 1, _MAX_PAGE.bit_length())]
    return min((page for page in pages if page >= largest), key=lambda page: _file_size(sizes, page))


def _file_size(sizes: list[int], page: int) -> int:
    """Return the bytes of all pages of a file whose samples have these sizes."""
    pages, free = 1, 0  # the first page holds the header
    for size in sizes:
        if size > free:
            pages, free = pages + 1, page
        free -= size
    return pages * page


def write_beton(shards: Path, manifest: Manifest, out: Path, advance: Callable[[], None] = lambda: None) -> int:
    """Convert a folder of shards to the file ``out``, and return the page size in bytes.

    If an error occurs, ``out`` is not written. FFCV's page allocator and header are used, but not its worker processes,
    because FFCV's writer waits forever if a worker fails (damaged sample, full disk). One process is as fast as the
    disk, since nothing is encoded, and writes the same bytes every time.

    Raises:
        CorruptSample: a sample is damaged.
        UserError: the shards hold raw pixels, or :func:`page_size` finds no page.
    """
    from ffcv.writer import DatasetWriter, MemoryAllocator, worker_job_indexed_dataset

    if manifest.encoder.encoding != "jpeg":
        raise UserError(f"{shards} holds raw pixels, but a .beton needs JPEGs: make shards without --raw")
    page = page_size(shards, manifest)
    form = load_format()
    clips = _Clips(shards, manifest, advance)
    tasks: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
    tasks.put([(sample, sample) for sample in range(manifest.samples)])
    tasks.put(None)
    allocations: queue.SimpleQueue[list[tuple[int, int, int]]] = queue.SimpleQueue()
    with atomic_path(out) as temporary:
        writer = DatasetWriter(str(temporary), {form.FIELD: form.ClipField(manifest.fingerprint)}, page, num_workers=1)
        writer.num_samples = manifest.samples
        writer.prepare()
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()  # a single process collects the rows of the samples without shared memory
        rows = SimpleNamespace(buf=bytearray(manifest.samples * writer.metadata_type.itemsize))
        writer.metadata_sm = rows
        allocator = MemoryAllocator(writer.fname, writer.data_region_start, page)
        done = multiprocessing.Value("Q", 0)
        worker_job_indexed_dataset(
            tasks, rows, writer.metadata_type, writer.fields, allocator, done, allocations, clips
        )
        writer.finalize(allocations.get())
    return page


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EXAMPLES)
