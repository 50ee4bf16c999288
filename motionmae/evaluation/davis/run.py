"""Segment DAVIS sequences: compute frame features, propagate labels, write palette PNGs, draw overlays."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.distributed.devices import choose_device
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.davis.dataset import Sequence, overlay, read_mask, write_mask
from motionmae.evaluation.davis.frame_features import encoder_features, pixel_features
from motionmae.evaluation.davis.propagation import PROTOCOLS, SHORT_SIDE, decide, propagate, shrink_labels, working_size
from motionmae.evaluation.load_model import load_model
from motionmae.evaluation.video_writer import write_mp4, write_png
from motionmae.evaluation.weights_source import WeightsSource
from motionmae.files import hash_files, write_atomically
from motionmae.models.motionmae import build_motionmae
from motionmae.outputs import refuse_foreign_names, signed
from motionmae.screen import progress_of

_STRIP = 8  # number of frames in a PNG overlay
PIXEL_CELL = 16


@dataclass(frozen=True)
class FeatureExtractor:
    """Frame features and the image size that they need."""

    cell: int  # size in pixels of a cell, the patch that one feature vector describes
    features: Callable[[Iterable[Tensor]], Iterator[Tensor]] | None
    """Maps frames, uint8 (H, W, 3), to features (width, rows, columns). None: the first mask is repeated."""
    short_side: int = SHORT_SIDE  # short side of the resized frames in pixels


def open_features(
    kind: str,
    source: WeightsSource | None,
    protocol: str,
    adapter: str,
    davis: Path,
    short_side: int = SHORT_SIDE,
) -> tuple[FeatureExtractor, CacheKey]:
    """Make a feature extractor, and the cache key of its masks. ``protocol`` and ``davis`` only enter the key.

    Args:
        kind: encoder, random (the encoder with initial weights), pixels, or repeat (the first mask). The first two
            kinds need ``source``.
        adapter: see :mod:`motionmae.evaluation.davis.frame_features`.
        short_side: short side of the resized frames in pixels; only encoders can change it.

    Raises:
        UserError: the weights cannot be loaded, or ``short_side`` is smaller than a patch or given without an encoder.
    """
    inputs, settings = str(davis.resolve()), dict[str, object](features=kind)
    if kind in ("repeat", "pixels") and short_side != SHORT_SIDE:
        raise UserError(f"--short-side needs an encoder, and --features {kind} has none: remove one of them")
    if kind == "repeat":
        return FeatureExtractor(1, None), CacheKey("", inputs, settings)
    if kind == "pixels":
        extractor = FeatureExtractor(PIXEL_CELL, lambda frames: pixel_features(frames, PIXEL_CELL))
        return extractor, CacheKey("", inputs, settings | {"protocol": protocol})
    assert source is not None
    loaded = load_model(source)
    config = loaded.config
    device = choose_device(config.engine.device)
    encoder = (build_motionmae(config).encoder if kind == "random" else loaded.encoder).eval().to(device)
    settings |= {"step": None if kind == "random" else loaded.step, "protocol": protocol, "adapter": adapter}
    cell = config.clip.cube_size
    if short_side < cell:
        raise UserError(f"--short-side {short_side} is smaller than a patch of {source.name}: give at least {cell}")
    if short_side != SHORT_SIDE:
        settings["short_side"] = short_side
    extractor = FeatureExtractor(cell, lambda frames: encoder_features(frames, encoder, adapter, device), short_side)
    return extractor, CacheKey(fingerprint(encoder), inputs, settings)


def segment(
    sequences: list[Sequence], extractor: FeatureExtractor, protocol: str, results: Path, key: CacheKey
) -> None:
    """Write the masks of all sequences to ``results``. Complete sequences are skipped.

    ``RESULTS/SEQ.sha256``, the hash of the first mask and the frames, is written after the masks of a sequence.
    """
    key.bind(results)
    hashes = {s.name: hash_files([s.masks[0], *s.frames]) for s in sequences}
    left = [s for s in sequences if not _is_complete(s, results, hashes[s.name])]
    with progress_of() as progress:
        task = progress.add_task("frames", total=sum(len(sequence.frames) for sequence in left))
        for sequence in left:
            progress.update(task, description=sequence.name)
            stamp = results / f"{sequence.name}.sha256"
            stamp.unlink(missing_ok=True)
            frames = (sequence.frame(n) for n in range(len(sequence.frames)))
            masks = track(sequence.first_mask(), frames, extractor, protocol)
            for path, mask in zip(sequence.frames, masks, strict=True):
                write_mask(results / sequence.name / f"{path.stem}.png", mask)
                progress.advance(task)
            write_atomically(stamp, hashes[sequence.name].encode())


def _is_complete(sequence: Sequence, results: Path, digest: str) -> bool:
    """Return whether ``results`` has all masks of a sequence, computed from inputs with the hash ``digest``."""
    stamp = results / f"{sequence.name}.sha256"
    masks = (results / sequence.name / f"{path.stem}.png" for path in sequence.frames)
    return stamp.is_file() and stamp.read_text() == digest and all(mask.is_file() for mask in masks)


def track(
    first_mask: np.ndarray, frames: Iterator[np.ndarray], extractor: FeatureExtractor, protocol: str
) -> Iterator[np.ndarray]:
    """Yield the mask (object numbers, H x W) of every frame, uint8 (H, W, 3), starting with ``first_mask``."""
    if extractor.features is None:
        yield from (first_mask for _ in frames)
        return
    rules = PROTOCOLS[protocol]
    height, width = first_mask.shape
    size = working_size(height, width, extractor.cell, rules, extractor.short_side)
    rows, columns = (side // extractor.cell for side in size)
    resized = (torch.from_numpy(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)) for frame in frames)
    labels = shrink_labels(first_mask, rows, columns, rules)
    yield first_mask
    for soft in propagate(extractor.features(resized), labels, rules):
        yield decide(soft, height, width, extractor.cell * SHORT_SIDE / extractor.short_side, rules)


def draw_overlays(sequences: list[Sequence], results: Path, kind: str) -> Iterator[Path]:
    """Draw the masks of each sequence over its frames: a strip of some frames (png), or a video (mp4)."""
    refuse_foreign_names(results, {f"{sequence.name}.{kind}": signed for sequence in sequences})
    for sequence in sequences:
        numbers = list(range(len(sequence.frames)))
        if kind == "png":
            numbers = np.linspace(0, len(sequence.frames) - 1, min(_STRIP, len(sequence.frames))).astype(int).tolist()
        masks = (read_mask(results / sequence.name / f"{sequence.frames[n].stem}.png") for n in numbers)
        drawn = (overlay(sequence.frame(n), mask) for n, mask in zip(numbers, masks, strict=True))
        path = results / f"{sequence.name}.{kind}"
        if kind == "mp4":
            write_mp4(path, drawn, fps=24)
        else:
            small = [cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA) for image in drawn]
            write_png(path, np.concatenate(small, axis=1))
        yield path
