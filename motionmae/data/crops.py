"""Choose one crop and one flip for all frames of a clip. motionmae.data.jpeg applies them."""

import math
from dataclasses import dataclass

from motionmae.config import DataConfig
from motionmae.data.rng import KeyedRandom

_ATTEMPTS = 10
_SCALES = (1.0, 0.875, 0.75, 0.66)  # MultiScaleCrop's fractions of the short side
_SNAP = 3  # MultiScaleCrop uses the output size if the scaled size differs from it by fewer than 3 pixels


@dataclass(frozen=True)
class Crop:
    """Rectangle of the stored frame in pixels. ``flip`` mirrors the rectangle left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def random_crop(height: int, width: int, size: int, data: DataConfig, random: KeyedRandom) -> Crop:
    """Draw the crop of a training clip of ``size`` pixels from stored frames of ``height`` x ``width`` pixels.

    With ``data.flip``, the crop is mirrored with probability 1/2.
    """
    flip = random.uniform() < 0.5  # always drawn first, so that the flip does not depend on other settings
    if data.crop == "multi_scale":
        top, left, h, w = multi_scale(height, width, size, random)
    else:
        top, left, h, w = random_resized(height, width, data.crop_scale, data.crop_ratio, random)
    return Crop(top, left, h, w, flip and data.flip)


def random_resized(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], random: KeyedRandom
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) as torchvision's RandomResizedCrop does.

    The area is uniform in ``scale`` of the frame, and the logarithm of width / height is uniform in ``ratio``. After
    ten draws that do not fit, the crop is the largest central one with an allowed ratio.
    """
    low, high = (math.log(bound) for bound in ratio)
    for _ in range(_ATTEMPTS):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.below(height - h + 1), random.below(width - w + 1), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def multi_scale(height: int, width: int, size: int, random: KeyedRandom) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) as the MultiScaleCrop of TSN and VideoMAE does.

    Height and width are 1, 0.875, 0.75 or 0.66 of the short side, and the two factors are equal or neighbours in this
    list. The crop has one of 13 positions: the corners, the centre, the middles of the sides and of the quarters.
    """
    sides = [int(min(height, width) * scale) for scale in _SCALES]
    sides = [size if abs(side - size) < _SNAP else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[random.below(len(pairs))]
    h, w = min(h, height), min(w, width)  # the output size may exceed the frame by two pixels
    corners = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4)]
    quarters = [(row, column) for row in (1, 3) for column in (1, 3)]
    row, column = (corners + quarters)[random.below(len(corners) + len(quarters))]
    return (height - h) // 4 * row, (width - w) // 4 * column, h, w


def central_crop(height: int, width: int) -> Crop:
    """Return the largest square in the middle of the frame."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)
