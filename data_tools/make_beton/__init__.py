"""Write a folder of shards as one FFCV file (.beton)."""

import argparse
import multiprocessing
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from rich.filesize import decimal

from data_tools.make_beton.clips import Clips, FrameForm
from data_tools.reporting import damage_as_user_error, progress_bar
from motionmae.commands.app import Command
from motionmae.data.ffcv.format import BETON_VERSION, FIELD, FieldArguments
from motionmae.data.ffcv.reader import BetonReader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.format import ShardEntry, load_index
from motionmae.data.shards.limits import MAX_SIDE
from motionmae.data.shards.manifest import Manifest
from motionmae.errors import UserError, check_limits
from motionmae.files import atomic_path, output_file
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.data.ffcv.field import ClipField

_DESCRIPTION = """\
Write a folder of shards as one FFCV file (.beton) for the local disk of a node (docs/data/ffcv.md).

The frames are checked and copied unchanged, in the order of sample ids. A run with data.beton gets the same clips as
from the shards. With --raw, frames that are JPEGs are stored as pixels, which load several times as fast. The file
gets its name when it is complete."""

_EXAMPLES = """\
examples:
  motionmae shards beton data/toy/train --out data/toy/train.beton
  motionmae shards beton data/k400/train --out /local/k400_train.beton
  motionmae shards beton data/k400/train --raw --short-side 128 --out /local/k400_train_128.beton
then train; the folder of the shards is still needed for its manifest.json:
  motionmae pretrain --config vitb_k400 data.shards=data/k400/train data.beton=/local/k400_train.beton

exit status: 0 the file is written (or exists already), 2 wrong input or damaged shards, 130 stopped by Ctrl-C."""

_UNCHANGED = FrameForm()
_MIN_PAGE, _MAX_PAGE = 2**21, 2**31  # FFCV's limits: a power of two from 2 MiB to below 4 GiB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards (--out of `motionmae shards make`)")
    parser.add_argument("--out", type=output_file, required=True, help="file to write, NAME.beton")
    parser.add_argument("--raw", action="store_true", help="store pixels instead of JPEGs")
    parser.add_argument(
        "--short-side", type=int, metavar="PIXELS", help="shrink frames to this short side; needs --raw"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")


@damage_as_user_error()
def run(arguments: argparse.Namespace) -> int:
    shards, out = arguments.shards, arguments.out
    load_field()
    manifest = load_manifest(shards)
    if not manifest.samples:
        raise UserError(f"{shards} holds no samples: make shards of your videos first")
    if out.suffix != ".beton":
        raise UserError(f"--out {out} does not end in .beton: choose another name")
    if arguments.short_side is not None:
        check_limits(arguments, {"short_side": (16, MAX_SIDE)})
    form = FrameForm(arguments.raw or manifest.encoder.encoding == "raw", arguments.short_side or 0)
    if form.short_side and not form.raw:
        raise UserError(f"the JPEGs of {shards} are copied as they are: add --raw to --short-side {form.short_side}")
    if out.exists() and not arguments.force:
        if not _is_written(out, manifest, form):
            raise UserError(f"{out} holds other data: give --force to replace it, or another --out")
        say(f"{out} is complete: {manifest.samples} samples of {shards}; nothing to do")
        return 0
    started = time.monotonic()
    try:
        with progress_bar() as bar:
            task = bar.add_task("samples", total=manifest.samples)
            page = write_beton(shards, manifest, out, lambda: bar.advance(task), form)
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


def load_field() -> "type[ClipField]":
    """Import FFCV's field of clips. Raises UserError if FFCV or one of its system libraries is missing."""
    try:
        from motionmae.data.ffcv.field import ClipField
    except ImportError as error:
        raise UserError(
            f"writing a .beton needs FFCV, which cannot be imported ({error}): run apt-get install libopencv-dev "
            "libturbojpeg0-dev pkg-config, then pip install 'motionmae[ffcv]'; runs that read a .beton need no FFCV"
        ) from error
    return ClipField


def _arguments(manifest: Manifest, form: FrameForm) -> FieldArguments:
    return FieldArguments(
        fingerprint=manifest.fingerprint,
        version=BETON_VERSION,
        encoding="raw" if form.raw else "jpeg",
        short_side=form.short_side,
    )


def _is_written(out: Path, manifest: Manifest, form: FrameForm) -> bool:
    """Return whether ``out`` is the complete file that the command would write."""
    try:
        return BetonReader(out, manifest).arguments == _arguments(manifest, form)
    except UserError:
        return False


def page_size(shards: Path, manifest: Manifest, form: FrameForm = _UNCHANGED) -> int:
    """Choose the page size in bytes, a power of two, that gives the smallest file. Every sample must fit in a page.

    FFCV starts a new page when a sample does not fit in the current page. Small pages waste a large part of each page.
    Large pages waste the end of the last page.

    Raises:
        CorruptSample: a shard is missing, or its index is damaged.
        UserError: a sample is too large for FFCV's largest page.
    """
    sizes = [size for entry in manifest.shards for size in _sample_sizes(shards, entry, form)]
    if (largest := max(sizes)) > _MAX_PAGE:
        remedy = "give a smaller --short-side, or train from the shards" if form.raw else "train from the shards"
        raise UserError(f"a sample of {decimal(largest)} exceeds FFCV's largest page: {remedy}")
    pages = [1 << power for power in range(_MIN_PAGE.bit_length() - 1, _MAX_PAGE.bit_length())]
    return min((page for page in pages if page >= largest), key=lambda page: _file_size(sizes, page))


def _sample_sizes(shards: Path, entry: ShardEntry, form: FrameForm) -> Iterator[int]:
    """Yield the bytes of the two regions of each sample."""
    _, columns = load_index(shards / entry.name, entry)
    names = ("frames", "height", "width", "windows", "jpgs_size")
    for frames, height, width, windows, size in zip(*(columns[name] for name in names), strict=True):
        blob = 4 * (frames + 1) + form.bytes(frames, height, width) if form.raw else size
        yield blob + 8 * frames + 4 * len(windows)


def _file_size(sizes: list[int], page: int) -> int:
    """Return the bytes of all pages of a file whose samples have these sizes."""
    pages, free = 1, 0  # the first page holds the header
    for size in sizes:
        if size > free:
            pages, free = pages + 1, page
        free -= size
    return pages * page


def write_beton(
    shards: Path,
    manifest: Manifest,
    out: Path,
    advance: Callable[[], None] = lambda: None,
    form: FrameForm = _UNCHANGED,
) -> int:
    """Convert a folder of shards to the file ``out``, and return the page size in bytes.

    If an error occurs, ``out`` is not written. FFCV's page allocator and header are used, but not its worker processes,
    because FFCV's writer waits forever if a worker fails (damaged sample, full disk). One process is as fast as the
    disk, since nothing is encoded, and writes the same bytes every time.

    Raises:
        CorruptSample: a sample is damaged.
        UserError: :func:`page_size` finds no page.
    """
    from ffcv.writer import DatasetWriter, MemoryAllocator, worker_job_indexed_dataset

    if manifest.encoder.encoding == "raw":
        form = form._replace(raw=True)
    page = page_size(shards, manifest, form)
    clips = Clips(open_reader(shards, manifest), form, advance)
    field = load_field()(_arguments(manifest, form))
    tasks: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
    tasks.put([(sample, sample) for sample in range(manifest.samples)])
    tasks.put(None)
    allocations: queue.SimpleQueue[list[tuple[int, int, int]]] = queue.SimpleQueue()
    with atomic_path(out) as temporary:
        writer = DatasetWriter(str(temporary), {FIELD: field}, page, num_workers=1)
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
