"""Open a data set: local shards, remote shards, a mixture, or an FFCV file. No other module makes this choice."""

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from motionmae.config import ClipConfig, DataConfig
from motionmae.config.text_types import node_path
from motionmae.data.clip_decoder import ClipDecoder, SampleDecoder, SampleReader
from motionmae.data.clip_sampling import check_windows
from motionmae.data.decode_workers import WorkerDecoder
from motionmae.data.ffcv.reader import BetonReader
from motionmae.data.mixture.order import Cursor, Order
from motionmae.data.mixture.reader import MixtureReader
from motionmae.data.mixture.sources import Sources
from motionmae.data.remote.cache import ShardCache
from motionmae.data.remote.download import RemoteFolder
from motionmae.data.remote.file_systems import is_remote
from motionmae.data.remote.prefetch import ShardPrefetcher
from motionmae.data.shards.manifest import MANIFEST, Manifest, check_whole, parse_manifest
from motionmae.data.shards.reader import LocalFolder, ShardReader
from motionmae.errors import UserError
from motionmae.json_text import JSON_LIMIT, InvalidJsonError, read_limited

_SEARCHED = 10_000  # files of a folder that is searched for videos
_MAX_OPEN_SHARDS = 512  # half of the usual limit on open files


def load_manifest(folder: Path | str, data: DataConfig | None = None) -> Manifest:
    """Read the manifest of a folder of shards (path or URL). ``data`` sets retries and timeout for a URL.

    Raises:
        UserError: the folder or its manifest is missing, the manifest is damaged or has a different format version.
        UnreachableError: the URL could not be read, but a later try may succeed.
    """
    if not folder:
        raise UserError("data.shards is empty: add data.shards=FOLDER, the --out folder of data_tools/make_shards")
    location = str(folder).rstrip("/")
    try:
        if not is_remote(location) and not Path(location).is_dir():  # raises PermissionError below a closed folder
            raise UserError(f"the folder of shards {location} does not exist: give the --out folder of make_shards")
        if is_remote(location):
            raw = RemoteFolder(location, data or DataConfig()).read(MANIFEST, JSON_LIMIT)
        else:
            raw = read_limited(Path(location) / MANIFEST, JSON_LIMIT)
    except InvalidJsonError as error:
        raise UserError(f"{location}/{MANIFEST} is not a manifest of shards ({error}): check data.shards") from error
    except FileNotFoundError:
        raise UserError(f"{location} has no {MANIFEST}: {_explain_no_manifest(location)}") from None
    except OSError as error:
        if is_remote(location):
            raise
        raise UserError(f"{location}/{MANIFEST} cannot be read ({error.strerror}): check its permissions") from error
    return parse_manifest(f"{location}/{MANIFEST}", raw)


def _explain_no_manifest(location: str) -> str:
    """Say what the folder is instead of a finished folder of shards, and the remedy."""
    from motionmae.data.video.read_video import VIDEO_SUFFIXES  # PyAV is slow to import

    finish = "it is written last, so run `motionmae shards make` again to finish it, or copy the file"
    folder = Path(location)
    if is_remote(location) or any(folder.glob("*.tar")):
        return finish
    if inner := sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")):
        return f"its folders hold the shards, so choose {' or '.join(map(str, inner[:4]))}"
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    if any(path.suffix.lower() in VIDEO_SUFFIXES for path in islice(found, _SEARCHED)):
        return f"these are videos, so make shards first: motionmae shards make folder --videos {location} --out SHARDS"
    return finish


def load_sources(data: DataConfig) -> Sources:
    """Read the manifests of all folders of ``data.shards``. Raises the errors of :func:`load_manifest`."""
    return Sources(data, tuple(load_manifest(source.path, data) for source in data.sources))


def open_reader(
    folder: Path | str, manifest: Manifest | None = None, data: DataConfig | None = None, open_shards: int = 256
) -> ShardReader:
    """Open a folder of shards (path or URL). ``data`` sets cache, retries and timeout for a URL.

    Raises UserError if the folder cannot be read or shards of the manifest are missing.
    """
    manifest = manifest or load_manifest(folder, data)
    if not is_remote(folder):
        return ShardReader(LocalFolder(Path(folder), manifest.shards), manifest, open_shards)
    cache = ShardCache(str(folder), data or DataConfig())
    return ShardReader(cache, manifest, cache.most_open(manifest.shards, open_shards))


def open_samples(data: DataConfig, sources: Sources | None = None) -> SampleReader:
    """Open the samples of a run. Raises UserError if files are missing or do not match the manifests."""
    sources = sources or load_sources(data)
    if data.beton:
        return BetonReader(node_path(data.beton), sources.manifest)
    most_open = max(1, min(2 * data.shuffle_window_shards, _MAX_OPEN_SHARDS // len(sources.manifests)))
    pairs = zip(data.sources, sources.manifests, strict=True)
    readers = [open_reader(source.path, manifest, data, most_open) for source, manifest in pairs]
    return MixtureReader(sources, readers) if sources.is_mixture else readers[0]


def open_decoder(data: DataConfig, clip: ClipConfig, sources: Sources) -> ClipDecoder:
    """Open the data of a run. Raises UserError if files are missing or do not match the manifests."""
    open_one = partial(_open_sample_decoder, data, clip, sources)
    return WorkerDecoder(open_one, data.workers) if data.workers else open_one()


def _open_sample_decoder(data: DataConfig, clip: ClipConfig, sources: Sources) -> SampleDecoder:
    return SampleDecoder(open_samples(data, sources), data, clip)


class Prefetchers:
    """Downloads of remote shards ahead of the decoder, one :class:`ShardPrefetcher` for each remote source.

    ``in_flight`` is the maximum distance between samples of a source in use at the same time. Raises UserError if the
    shuffle windows in use do not fit in the cache.
    """

    def __init__(self, reader: SampleReader, data: DataConfig, order: Order, rank: int, in_flight: Sequence[int]):
        readers = reader.readers if isinstance(reader, MixtureReader) else (reader,)
        remote = {
            number: (one, one.store)
            for number, one in enumerate(readers)
            if isinstance(one, ShardReader) and isinstance(one.store, ShardCache)
        }
        needed = 0.0
        for number, (one, cache) in remote.items():
            needed += cache.room_for(one.manifest.shards, data.shuffle_window_shards, in_flight[number])
        for _, cache in remote.values():
            cache.require_room(needed, data.shuffle_window_shards)
        self._by_source = {
            number: ShardPrefetcher(one, cache, partial(order.pass_of, number), rank, data.downloads)
            for number, (one, cache) in remote.items()
        }

    def __bool__(self) -> bool:
        return bool(self._by_source)

    def advance_to(self, cursors: Sequence[Cursor]) -> None:
        for number, prefetcher in self._by_source.items():
            prefetcher.advance_to(*cursors[number])

    def close(self) -> None:
        """End the threads. Close the reader first, because that cancels the downloads."""
        for prefetcher in self._by_source.values():
            prefetcher.close()


def check_stored(sources: Sources, clip: ClipConfig, flow: bool) -> None:
    """Check that the shards have the stride, flow, window length and whole videos that a run needs."""
    data = sources.data
    if flow and data.beton:
        raise UserError(f"data.beton={data.beton} holds no optical flow: leave data.beton empty to read the shards")
    for source, manifest in zip(data.sources, sources.manifests, strict=True):
        check_windows(manifest, source.path, clip)
        if flow and not manifest.encoder.flow_distance:
            raise UserError(f"the shards of {source.path} hold no optical flow: make them with --flow")
        if data.sampling == "segments":
            check_whole(manifest, source.path, "data.sampling=segments")


def check_node_file(data: DataConfig, on_this_machine: bool) -> str:
    """Check for the FFCV file that each node reads instead of the shards, and may have on its local disk.

    If the file is missing, raise UserError if the run starts on this machine, else return a note for the user. If the
    file exists, return an empty string.
    """
    path = data.beton
    if not path or path.startswith("$") or Path(path).is_file():  # $TMPDIR is set only within the job
        return ""
    if on_this_machine:
        raise UserError(
            f"data.beton={path} does not exist: write it with `motionmae shards beton {data.shards} --out {path}`, or "
            "leave data.beton empty"
        )
    return f"data.beton={path} does not exist on this machine: make sure that every node has the file"
