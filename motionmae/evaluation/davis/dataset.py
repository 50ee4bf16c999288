"""DAVIS-2017 in its official layout: sequences, palette masks, scores of a folder of masks.

::

    DAVIS/JPEGImages/480p/SEQ/00000.jpg
    DAVIS/Annotations/480p/SEQ/00000.png      palette PNG; at least the first where only propagation is wanted
    DAVIS/ImageSets/2017/val.txt              names of the sequences
    RESULTS/SEQ/00000.png                     predictions
"""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from motionmae.errors import UserError
from motionmae.evaluation.davis.metrics import Score, score_sequence
from motionmae.files import write_atomically

RESOLUTION = "480p"

Scores = dict[str, dict[str, Score]]
"""J and F of each object, ``SEQ_ID``."""


@dataclass(frozen=True)
class Sequence:
    """One video of the data set."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]

    @property
    def annotated(self) -> bool:
        """Whether every frame has a mask, as scores need."""
        return len(self.masks) == len(self.frames)

    def first_mask(self) -> NDArray[np.uint8]:
        """Object numbers (H, W) of the first frame; void is background."""
        mask = read_mask(self.masks[0])
        return np.where(mask == 255, 0, mask).astype(np.uint8)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """A frame, uint8 (H, W, 3) RGB.

        Raises:
            UserError: it is no picture.
        """
        picture = cv2.imread(str(self.frames[number]))
        if picture is None:
            raise UserError(f"{self.frames[number]} is no readable picture: get the data set again")
        return np.ascontiguousarray(picture[..., ::-1])


def read_sequences(davis: Path, image_set: str = "2017/val") -> list[Sequence]:
    """The sequences that ``ImageSets/IMAGE_SET.txt`` lists.

    Raises:
        UserError: no such list, or an empty one, or frames or masks are missing.
    """
    listing = davis / "ImageSets" / f"{image_set}.txt"
    if not listing.is_file():
        raise UserError(f"{davis} has no {listing.relative_to(davis)}: give the DAVIS folder with JPEGImages in it")
    sequences = []
    for name in listing.read_text().split():
        frames = sorted((davis / "JPEGImages" / RESOLUTION / name).glob("*.jpg"))
        masks = sorted((davis / "Annotations" / RESOLUTION / name).glob("*.png"))
        if not masks:
            raise UserError(
                f"{davis}/Annotations/{RESOLUTION}/{name} holds no masks: get the annotations of DAVIS 2017"
            )
        if not frames or frames[0].stem != masks[0].stem:
            raise UserError(
                f"{davis}/JPEGImages/{RESOLUTION}/{name} lacks the frame of {masks[0].name}: get the frames"
            )
        sequences.append(Sequence(name, tuple(frames), tuple(masks)))
    if not sequences:
        raise UserError(f"{listing} names no sequence: write the name of one a line, or get the data set again")
    return sequences


def score_folder(sequences: list[Sequence], results: Path) -> Scores:
    """Scores of the masks below ``results`` by object: ``SEQ_ID`` -> J and F.

    Raises:
        UserError: a mask is missing or of another size, the annotations are not of the whole sequence, or there is
            nothing to score.
    """
    scores: Scores = {}
    for sequence in sequences:
        if not sequence.annotated:
            raise UserError(
                f"{sequence.name} has {len(sequence.frames)} frames and {len(sequence.masks)} annotated masks: "
                "scores need all of them"
            )
        if len(sequence.frames) < 3:
            raise UserError(
                f"{sequence.name} has {len(sequence.frames)} frames, and the first and last do not count: leave it out"
            )
        truth = [read_mask(path) for path in sequence.masks]
        found = []
        for path, true in zip(sequence.masks, truth, strict=True):
            prediction = results / sequence.name / path.name
            if not prediction.is_file():
                raise UserError(f"{prediction} is missing: every frame of {sequence.name} needs a mask there")
            found.append(read_mask(prediction))
            if found[-1].shape != true.shape:
                raise UserError(f"{prediction} is {found[-1].shape}, the annotation is {true.shape}: resize it")
        for number, score in score_sequence(np.stack(truth), np.stack(found)).items():
            scores[f"{sequence.name}_{number}"] = score
    if not scores:
        raise UserError(f"no first mask of {len(sequences)} sequences holds an object, so there is nothing to score")
    return scores


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Object numbers (H, W) of a palette or grey PNG.

    Raises:
        UserError: it is no picture with one number a pixel.
    """
    try:
        with Image.open(path) as picture:
            mask = np.array(picture)
    except OSError as error:
        raise UserError(f"{path} is no readable picture: {error}") from error
    if mask.ndim != 2:
        raise UserError(f"{path} has {mask.shape[2]} channels: a mask is a palette PNG of object numbers")
    return mask.astype(np.uint8)


def write_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    """Write object numbers (H, W) as a PNG with DAVIS's palette, atomically."""
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(palette().flatten().tolist())
    content = io.BytesIO()
    picture.save(content, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def palette() -> NDArray[np.uint8]:
    """Colours (256, 3) of PASCAL VOC and DAVIS: bits of the number spread over the high bits of red, green, blue."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame with its objects tinted in their colours, their outlines drawn full."""
    tinted = frame.copy()
    inside = mask > 0
    colours = palette()[mask]
    tinted[inside] = (0.5 * frame[inside] + 0.5 * colours[inside]).astype(np.uint8)
    edges = inside & (cv2.erode(mask, np.ones((3, 3), np.uint8)) != mask)
    tinted[edges] = colours[edges]
    return tinted
