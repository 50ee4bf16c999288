"""Read our shards in a plain pipeline of the webdataset library: samples become clips, the same as the loader's.

Example::

    import webdataset
    from motionmae.data.webdataset import decode

    shards = "data/k400/train/train-{000000..000099}.tar"
    for sample in webdataset.WebDataset(shards, shardshuffle=False).map(decode(frames=16, size=224, stride=4)):
        sample["clip"]  # uint8 (16, 224, 224, 3); sample["label"], sample["class_name"], sample["source"]
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest
from motionmae.data.clip_sampling import central_cut
from motionmae.data.jpeg import Target, decode_clips
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ENCODINGS, load_index
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shards.schema import SampleFacts
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, parse_json

Sample = dict[str, Any]


def decode(
    frames: int = 16,
    size: int = 224,
    stride: int = 4,
    *,
    seed: int | None = None,
    epoch: int = 0,
    folder: Path | str = "",
    data: DataConfig | None = None,
) -> Callable[[Mapping[str, Any]], Sample]:
    """Return a function for ``WebDataset(...).map``, which makes a clip of each sample.

    Args:
        frames: frames of a clip.
        size: height and width of a clip in pixels.
        stride: distance of the frames of a clip, in frames of the video.
        seed: None takes the middle frames and the central square, as a test does. A number takes the random frames,
            crop and flip that a run with this seed gives the sample in ``epoch``.
        folder: local folder of the shards; with a seed, it tells the id of a sample, with which its clip is drawn.
        data: crop, flip and sampling of random clips; by default those of :class:`motionmae.config.DataConfig`.

    The result has ``clip``, uint8 (frames, size, size, 3), ``label``, ``class_name``, ``source``, ``__key__`` and
    ``__url__``. The function raises CorruptSample for a damaged sample, for which webdataset has handlers.
    """
    clip = ClipConfig(frames=frames, size=size, stride=stride, cube_size=_cube(size), cube_frames=_even(frames))
    if seed is not None and not folder:
        raise UserError("a random clip is drawn with the id of its sample: give decode(folder=...) of the shards")
    ids = _SampleIds(Path(folder)) if seed is not None else None
    settings = data or DataConfig()

    def decode_sample(sample: Mapping[str, Any]) -> Sample:
        facts, meta = _read_facts(sample)
        if seed is None or ids is None:
            cut = central_cut(meta, clip)
        else:
            cut = ClipRequest(0, seed, epoch, ids.find(sample), 0).cut(meta, settings, clip)
        pixels = np.empty((frames, size, size, 3), np.uint8)
        decode_clips(_stored_frames(sample, meta, cut[0]), meta, [Target(*cut, pixels)])
        kept = {key: sample[key] for key in ("__key__", "__url__") if key in sample}
        names = {"label": meta.label, "class_name": facts.class_name, "source": facts.source}
        return {**kept, "clip": torch.from_numpy(pixels), **names}

    return decode_sample


def _cube(size: int) -> int:
    """Return a cube size that divides ``size``: it does not matter for a clip, but a config has one."""
    return next(cube for cube in (16, 14, 12, 8, 7, 6, 5, 4, 3, 2, 1) if size % cube == 0)


def _even(frames: int) -> int:
    return 2 if frames % 2 == 0 else 1


def _shard_name(sample: Mapping[str, Any]) -> str:
    return PurePosixPath(str(sample.get("__url__", ""))).name


def _read_facts(sample: Mapping[str, Any]) -> tuple[SampleFacts, SampleMeta]:
    shard, key = _shard_name(sample), str(sample.get("__key__", ""))
    try:
        facts = parse_json(sample["json"], SampleFacts)
    except KeyError:
        detail = "it has no .json: is the tar one of motionmae shards make, and not decoded before?"
        raise CorruptSample(Reason.BAD_INDEX, f"{shard}:{key}", detail) from None
    except InvalidJsonError as error:
        raise CorruptSample(Reason.CHECKSUM, f"{shard}:{key}", f"KEY.json: {error}") from error
    encoding = next((name for name, member in ENCODINGS.items() if member in sample), "")
    if not encoding or "crcs" not in sample:
        raise CorruptSample(Reason.BAD_INDEX, f"{shard}:{key}", "it has no frames or no checksums")
    windows = tuple((facts.model_extra or {}).get("windows") or (0,))
    meta = SampleMeta(
        shard, key, facts.label, facts.fps, facts.frames, facts.stride, facts.height, facts.width, windows,
        has_flow="flow" in sample, encoding=encoding,
    )  # fmt: skip
    return facts, meta


def _stored_frames(sample: Mapping[str, Any], meta: SampleMeta, numbers: Sequence[int]) -> dict[int, memoryview]:
    """Return stored frames by their numbers, each checked against its crc32."""
    packed = memoryview(sample[ENCODINGS[meta.encoding]])
    if len(packed) < 4 * (meta.frames + 1) or len(sample["crcs"]) < 4 * meta.frames:
        raise CorruptSample(Reason.CHECKSUM, meta.where, "its frame table is too short")
    offsets = np.frombuffer(packed, "<u4", meta.frames + 1).tolist()
    checksums = np.frombuffer(sample["crcs"], "<u4", meta.frames)
    found = {number: packed[offsets[number] : offsets[number + 1]] for number in set(numbers)}
    for number, content in found.items():
        if zlib.crc32(content) != checksums[number]:
            raise CorruptSample(Reason.CHECKSUM, meta.where, f"frame {number} was changed")
    return found


class _SampleIds:
    """Ids of the samples of a folder of shards, by shard and key."""

    def __init__(self, folder: Path):
        from motionmae.data.open_shards import load_manifest

        self._folder, self._manifest = folder, load_manifest(folder)
        self._known: dict[str, dict[str, int]] = {}

    def find(self, sample: Mapping[str, Any]) -> int:
        shard = _shard_name(sample)
        if shard not in self._known:
            self._known[shard] = self._read(self._manifest, shard)
        try:
            return self._known[shard][str(sample["__key__"])]
        except KeyError:
            raise UserError(
                f"{shard} of {self._folder} has no sample {sample.get('__key__')!r}: give its own folder"
            ) from None

    def _read(self, manifest: Manifest, name: str) -> dict[str, int]:
        first = 0
        for entry in manifest.shards:
            if entry.name == name:
                _, columns = load_index(self._folder / name, entry)
                return {key: first + row for row, key in enumerate(columns["key"])}
            first += entry.samples
        raise UserError(f"the manifest of {self._folder} has no shard {name!r}: give decode(folder=...) of its shards")
