"""Read the DAVIS-2017 data set in its official layout, read and write palette masks, and score a folder of masks.

::

    DAVIS/JPEGImages/480p/SEQ/00000.jpg
    DAVIS/Annotations/480p/SEQ/00000.png      palette PNG; propagation needs only that of the first frame
    DAVIS/ImageSets/2017/val.txt              names of the sequences
    RESULTS/SEQ/00000.png                     predictions

A missing or unreadable file raises UserError.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from motionmae.errors import UserError
from motionmae.evaluation.davis.metrics import Score, score_sequence
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, read_limited

RESOLUTION = "480p"

_NAME = re.compile(r"\w[\w.-]{0,200}")
_LIST_BYTES = 1 << 20

Scores = dict[str, dict[str, Score]]  # maps an object, ``SEQ_ID``, to its J and F


@dataclass(frozen=True)
class Sequence:
    """Paths of the frames and masks of a video."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]

    @property
    def annotated(self) -> bool:
        """Whether every frame has a mask, which scoring needs."""
        return len(self.masks) == len(self.frames)

    def first_mask(self) -> NDArray[np.uint8]:
        """Read the first frame's mask as object numbers (H, W). Void pixels become background."""
        mask = read_mask(self.masks[0])
        return np.where(mask == 255, 0, mask).astype(np.uint8)

    def frame(self, number: int) -> NDArray[np.uint8]:
        image = cv2.imread(str(self.frames[number]))
        if image is None:
            raise UserError(f"{self.frames[number]} is not a readable image: download the data set again")
        return np.ascontiguousarray(image[..., ::-1])


def read_sequences(davis: Path, image_set: str = "2017/val") -> list[Sequence]:
    """Read the sequences named in ``ImageSets/IMAGE_SET.txt``. A name becomes a folder of the results, never a path."""
    names = davis / "ImageSets" / f"{image_set}.txt"
    if not names.is_file():
        raise UserError(f"{names} is missing: give --davis the folder that contains JPEGImages and ImageSets")
    sequences = []
    for name in _read_names(names):
        frames = sorted((davis / "JPEGImages" / RESOLUTION / name).glob("*.jpg"))
        masks = sorted((davis / "Annotations" / RESOLUTION / name).glob("*.png"))
        if not masks:
            raise UserError(f"{davis}/Annotations/{RESOLUTION}/{name} contains no masks: download DAVIS 2017 again")
        if not frames or frames[0].stem != masks[0].stem:
            folder = f"{davis}/JPEGImages/{RESOLUTION}/{name}"
            raise UserError(f"{folder}/{masks[0].stem}.jpg is missing: download DAVIS 2017 again")
        sequences.append(Sequence(name, tuple(frames), tuple(masks)))
    if not sequences:
        raise UserError(f"{names} is empty: write the name of one sequence per line, or download DAVIS 2017 again")
    return sequences


def _read_names(file: Path) -> list[str]:
    try:
        names = read_limited(file, _LIST_BYTES).decode().split()
    except (OSError, InvalidJsonError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not readable ({error}): download DAVIS 2017 again") from error
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{file} names {name[:100]!r}, which is not the name of a folder: correct the line")
    return names


def score_folder(sequences: list[Sequence], results: Path) -> Scores:
    """Return J and F of each object in the masks of ``results``. Every frame must have a mask and an annotation."""
    scores: Scores = {}
    for sequence in sequences:
        if not sequence.annotated:
            raise UserError(
                f"{sequence.name} has {len(sequence.frames)} frames but {len(sequence.masks)} annotated masks: "
                "download the masks of all frames, or remove the sequence from the list of --image-set"
            )
        if len(sequence.frames) < 3:
            raise UserError(
                f"{sequence.name} has {len(sequence.frames)} frames, and the first and the last do not count: "
                "remove it from the list of --image-set"
            )
        truth = [read_mask(path) for path in sequence.masks]
        found = []
        for path, true in zip(sequence.masks, truth, strict=True):
            prediction = results / sequence.name / path.name
            if not prediction.is_file():
                raise UserError(f"{prediction} is missing: write a mask for every frame of {sequence.name}")
            found.append(read_mask(prediction))
            if found[-1].shape != true.shape:
                raise UserError(f"{prediction} is {found[-1].shape}, its annotation {true.shape}: resize the mask")
        for number, score in score_sequence(np.stack(truth), np.stack(found)).items():
            scores[f"{sequence.name}_{number}"] = score
    if not scores:
        raise UserError(f"the first masks of all {len(sequences)} sequences are empty: choose another --image-set")
    return scores


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a palette or greyscale PNG as object numbers (H, W)."""
    try:
        with Image.open(path) as image:
            mask = np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}): write it again") from error
    if mask.ndim != 2:
        raise UserError(f"{path} has {mask.shape[2]} channels: masks must be palette PNGs of object numbers")
    return mask.astype(np.uint8)


def write_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    """Write object numbers (H, W) as a PNG with DAVIS's palette."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(palette().flatten().tolist())
    content = io.BytesIO()
    image.save(content, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def palette() -> NDArray[np.uint8]:
    """Return the colour palette (256, 3) of PASCAL VOC and DAVIS."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of the frame with the objects of ``mask`` tinted and outlined in their colours."""
    tinted = frame.copy()
    inside = mask > 0
    colours = palette()[mask]
    tinted[inside] = (0.5 * frame[inside] + 0.5 * colours[inside]).astype(np.uint8)
    edges = inside & (cv2.erode(mask, np.ones((3, 3), np.uint8)) != mask)
    tinted[edges] = colours[edges]
    return tinted
