"""From DAVIS sequences to masks: features, propagation, palette PNGs, pictures of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.distributed.context import choose_device
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.davis.dataset import Sequence, overlay, read_mask, write_mask
from motionmae.evaluation.davis.frame_features import encoder_features, pixel_features
from motionmae.evaluation.davis.propagation import PROTOCOLS, SHORT_SIDE, decide, propagate, shrink_labels, working_size
from motionmae.evaluation.load_run import load_embedding
from motionmae.evaluation.video_writer import write_mp4
from motionmae.files import hash_files, write_atomically
from motionmae.models.motionmae import build_motionmae

_STRIP = 8
"""Frames of a sequence in a PNG strip."""
PIXEL_CELL = 16


@dataclass(frozen=True)
class FeatureSource:
    """Makes features of frames; the labels of ``repeat`` need none."""

    cell: int
    """Pixels a side of what has one feature."""
    features: Callable[[Iterable[Tensor]], Iterator[Tensor]] | None
    """Frames uint8 (H, W, 3), sides in whole cells -> (width, rows, columns) of each."""
    short_side: int = SHORT_SIDE
    """Pixels of the frames' short side when they are looked at."""


def open_features(
    kind: str,
    run: Path | None,
    step: int | None,
    protocol: str,
    adapter: str,
    davis: Path,
    short_side: int = SHORT_SIDE,
) -> tuple[FeatureSource, CacheKey]:
    """The features of a kind, and what tells their masks apart from others.

    Args:
        kind: encoder, random (its initial weights), pixels or repeat.
        run: folder of the run, for the first two.
        step: of its checkpoint; None for the newest.
        protocol: only recorded.
        adapter: see :mod:`motionmae.evaluation.davis.frame_features`.
        davis: only recorded; not the list of sequences, on which no mask depends.
        short_side: of the frames that an encoder sees.

    Raises:
        UserError: as :func:`motionmae.evaluation.load_run.load_embedding`; or ``short_side`` fits no
            cell, or no encoder.
    """
    inputs = str(davis.resolve())
    if kind in ("repeat", "pixels") and short_side != SHORT_SIDE:
        raise UserError(f"--short-side is an encoder's, --features {kind} has none: leave one of them out")
    if kind == "repeat":
        return FeatureSource(1, None), CacheKey("", inputs, {"features": kind})
    if kind == "pixels":
        settings: dict[str, object] = {"features": kind, "protocol": protocol}
        return FeatureSource(PIXEL_CELL, lambda frames: pixel_features(frames, PIXEL_CELL)), CacheKey(
            "", inputs, settings
        )
    assert run is not None
    embedding, config, found = load_embedding(run, step)
    encoder = build_motionmae(config).encoder if kind == "random" else embedding.encoder
    device = choose_device(config.engine.device)
    encoder = encoder.eval().to(device)
    settings = {
        "features": kind,
        "step": None if kind == "random" else found,
        "protocol": protocol,
        "adapter": adapter,
    }
    cell = config.clip.cube_size
    if short_side < cell:
        raise UserError(f"--short-side {short_side} holds no cell of {cell} pixels ({run}): give {cell} or more")
    if short_side != SHORT_SIDE:
        settings["short_side"] = short_side
    source = FeatureSource(cell, lambda frames: encoder_features(frames, encoder, adapter, device), short_side)
    return source, CacheKey(fingerprint(encoder), inputs, settings)


def segment(sequences: list[Sequence], source: FeatureSource, protocol: str, results: Path, identity: CacheKey) -> None:
    """Write the masks of every sequence below ``results``; those that are complete are left as they are.

    ``RESULTS/SEQ.sha256`` is written after the masks of a sequence: the hash of the frames and the first mask that they
    were made of.

    Raises:
        UserError: ``results`` is of another identity.
    """
    identity.bind(results)
    marks = {s.name: hash_files([s.masks[0], *s.frames]) for s in sequences}
    left = [s for s in sequences if not _is_made(s, results, marks[s.name])]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("frames", total=sum(len(sequence.frames) for sequence in left))
        for sequence in left:
            progress.update(task, description=sequence.name)
            mark = results / f"{sequence.name}.sha256"
            mark.unlink(missing_ok=True)
            masks = track(
                sequence.first_mask(), (sequence.frame(n) for n in range(len(sequence.frames))), source, protocol
            )
            for path, mask in zip(sequence.frames, masks, strict=True):
                write_mask(results / sequence.name / f"{path.stem}.png", mask)
                progress.advance(task)
            write_atomically(mark, marks[sequence.name].encode())


def _is_made(sequence: Sequence, results: Path, digest: str) -> bool:
    """Whether all masks of a sequence lie below ``results``, made of files with that hash."""
    mark = results / f"{sequence.name}.sha256"
    masks = (results / sequence.name / f"{path.stem}.png" for path in sequence.frames)
    return mark.is_file() and mark.read_text() == digest and all(mask.is_file() for mask in masks)


def track(
    first_mask: np.ndarray, frames: Iterator[np.ndarray], source: FeatureSource, protocol: str
) -> Iterator[np.ndarray]:
    """Object numbers (H, W) of every frame; of the first, the given ones.

    Args:
        first_mask: uint8 (H, W).
        frames: uint8 (H, W, 3), the first included.
        source: of features.
        protocol: name of one of PROTOCOLS.
    """
    if source.features is None:
        yield from (first_mask for _ in frames)
        return
    rules = PROTOCOLS[protocol]
    height, width = first_mask.shape
    size = working_size(height, width, source.cell, rules, source.short_side)
    rows, columns = (side // source.cell for side in size)
    resized = (torch.from_numpy(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)) for frame in frames)
    labels = shrink_labels(first_mask, rows, columns, rules)
    yield first_mask
    for soft in propagate(source.features(resized), labels, rules):
        yield decide(soft, height, width, source.cell * SHORT_SIDE / source.short_side, rules)


def draw_overlays(sequences: list[Sequence], results: Path, kind: str) -> Iterator[Path]:
    """Draw each sequence's masks over its frames, as a strip of some frames (png) or as a video (mp4)."""
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
            small = [cv2.resize(picture, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA) for picture in drawn]
            cv2.imwrite(str(path), np.concatenate(small, axis=1)[..., ::-1])
        yield path
