"""Open a data set: local shards, remote shards or an FFCV file. No other module makes this choice."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from motionmae.config import ClipConfig, DataConfig
from motionmae.config.text_types import node_path
from motionmae.data.clip_decoder import ClipDecoder, SampleDecoder, SampleReader
from motionmae.data.clip_sampling import check_windows
from motionmae.data.decode_workers import WorkerDecoder
from motionmae.data.ffcv.reader import BetonReader
from motionmae.data.remote.cache import ShardCache
from motionmae.data.remote.download import RemoteFolder
from motionmae.data.remote.file_systems import is_remote
from motionmae.data.remote.prefetch import ShardPrefetcher
from motionmae.data.sampler import EpochSampler
from motionmae.data.shards.manifest import MANIFEST, Manifest, check_whole, parse_manifest
from motionmae.data.shards.reader import LocalFolder, ShardReader
from motionmae.errors import UserError
from motionmae.json_text import JSON_LIMIT, InvalidJsonError, read_limited

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
        raise UserError(
            f"{location} has no {MANIFEST}, which is written last: run make_shards again to finish it, or copy the file"
        ) from None
    except OSError as error:
        if is_remote(location):
            raise
        raise UserError(f"{location}/{MANIFEST} cannot be read ({error.strerror}): check its permissions") from error
    return parse_manifest(f"{location}/{MANIFEST}", raw)


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


def open_samples(data: DataConfig, manifest: Manifest) -> SampleReader:
    """Open the samples of a run. Raises UserError if files are missing or do not match ``manifest``."""
    if data.beton:
        return BetonReader(node_path(data.beton), manifest)
    return open_reader(data.shards, manifest, data, min(2 * data.shuffle_window_shards, _MAX_OPEN_SHARDS))


def open_decoder(data: DataConfig, clip: ClipConfig, manifest: Manifest) -> ClipDecoder:
    """Open the data of a run. Raises UserError if files are missing or do not match ``manifest``."""
    open_one = partial(_open_sample_decoder, data, clip, manifest)
    return WorkerDecoder(open_one, data.workers) if data.workers else open_one()


def _open_sample_decoder(data: DataConfig, clip: ClipConfig, manifest: Manifest) -> SampleDecoder:
    return SampleDecoder(open_samples(data, manifest), data, clip)


def start_prefetch(
    decoder: ClipDecoder, data: DataConfig, sampler_of: Callable[[int], EpochSampler], rank: int, in_flight: int
) -> ShardPrefetcher | None:
    """Start to download remote shards ahead of the decoder. Return None if all files are local.

    ``in_flight`` is the maximum distance between shuffle indices in use at the same time. Raises UserError if the
    shuffle windows in use do not fit in the cache.
    """
    reader = decoder.reader
    if not isinstance(reader, ShardReader) or not isinstance(reader.store, ShardCache):
        return None
    reader.store.require_room(reader.manifest.shards, data.shuffle_window_shards, in_flight)
    return ShardPrefetcher(reader, reader.store, sampler_of, rank, data.downloads)


def check_stored(manifest: Manifest, data: DataConfig, clip: ClipConfig, flow: bool) -> None:
    """Check that the shards have the stride, flow, window length and whole videos that a run needs."""
    check_windows(manifest, data.shards, clip)
    if flow and not manifest.encoder.flow_distance:
        raise UserError(f"the shards of {data.shards} hold no optical flow: make them with --flow")
    if flow and data.beton:
        raise UserError(f"data.beton={data.beton} holds no optical flow: leave data.beton empty to read the shards")
    if data.sampling == "segments":
        check_whole(manifest, data.shards, "data.sampling=segments")


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
