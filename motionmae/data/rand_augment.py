"""RandAugment and random erasing of whole clips for fine-tuning (Table 6b).

timm's RandAugment draws new operations for every image from Python's global generator. All frames of a clip need the
same operations, whichever thread decodes the clip. This module therefore draws timm's operations by the clip's key.
"""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image
from timm.data import auto_augment
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing

from motionmae.config import DataConfig
from motionmae.data.clip_sampling import random_resized
from motionmae.data.rng import KeyedRandom
from motionmae.errors import UserError

Operation = Callable[[Image.Image], Image.Image]

_MIRRORED = dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), 0.0) | dict.fromkeys(
    ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"), 1.0
)
"""Neutral value of each operation whose argument timm mirrors at random around that value."""


class ClipAugment:
    """Transform of clips by ``data.rand_augment`` and ``data.random_erasing``."""

    def __init__(self, data: DataConfig, size: int):
        self._erase = data.random_erasing
        self._policy = parse_policy(data.rand_augment, size) if data.rand_augment else None
        self._mean, self._std = (255 * np.array(part) for part in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))

    def __call__(self, clip: np.ndarray, keyed: KeyedRandom) -> None:
        """Augment a clip in place: uint8 (T, size, size, 3)."""
        if self._policy:
            operations = draw_operations(self._policy, random.Random(keyed.bits()))
            for frame in clip if operations else ():
                picture = Image.fromarray(frame)
                for operation in operations:
                    picture = operation(picture)
                frame[:] = np.asarray(picture)
        if keyed.uniform() < self._erase:
            self._erase_box(clip, keyed)

    def _erase_box(self, clip: np.ndarray, keyed: KeyedRandom) -> None:
        """Fill one box in all frames with normal noise around ImageNet's mean. The box sizes are timm's defaults."""
        frames, height, width, _ = clip.shape
        box = RandomErasing()
        aspect = (float(np.exp(box.log_aspect_ratio[0])), float(np.exp(box.log_aspect_ratio[1])))
        top, left, h, w = random_resized(height, width, (box.min_area, box.max_area), aspect, keyed)
        noise = np.random.Generator(np.random.Philox(keyed.bits())).standard_normal((frames, h, w, 3), np.float32)
        clip[:, top : top + h, left : left + w] = (self._mean + self._std * noise).clip(0, 255)


def parse_policy(text: str, size: int) -> auto_augment.RandAugment:
    """Parse timm's notation of RandAugment, such as ``rand-m9-mstd0.5-inc1``, for images of ``size`` pixels.

    Raises UserError if timm cannot parse the text, or the text contains weights of operations.
    """
    settings = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN),
        "interpolation": Image.Resampling.BILINEAR,  # timm's default draws one at random for every image
    }
    try:
        policy = auto_augment.rand_augment_transform(text, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"data.rand_augment={text} is not in timm's notation ({error}): set for example rand-m9-mstd0.5-inc1"
        ) from error
    if policy.choice_weights is not None:
        raise UserError(f"data.rand_augment={text} contains weights of operations, which are unsupported: remove -t")
    return policy


def draw_operations(policy: auto_augment.RandAugment, generator: random.Random) -> list[Operation]:
    """Draw the operations of one clip with the probabilities of timm's ``RandAugment`` and ``AugmentOp``."""
    operations: list[Operation] = []
    for _ in range(policy.num_layers):
        chosen = policy.ops[int(generator.random() * len(policy.ops))]
        if chosen.prob < 1.0 and generator.random() > chosen.prob:
            continue
        magnitude = chosen.magnitude
        if chosen.magnitude_std == float("inf"):
            magnitude = generator.uniform(0, magnitude)
        elif chosen.magnitude_std > 0:
            magnitude = generator.gauss(magnitude, chosen.magnitude_std)
        magnitude = max(0.0, min(magnitude, chosen.magnitude_max or auto_augment._LEVEL_DENOM))
        operations.append(_operation(chosen, magnitude, 1 if generator.random() > 0.5 else -1))
    return operations


def _operation(chosen: auto_augment.AugmentOp, magnitude: float, sign: int) -> Operation:
    arguments: tuple[float, ...] = chosen.level_fn(magnitude, chosen.hparams) if chosen.level_fn else ()
    neutral = _MIRRORED.get(chosen.name)
    if neutral is not None:  # redraw the sign, which timm drew from Python's global generator
        arguments = (neutral + sign * round(abs(arguments[0] - neutral), 12),)
    return lambda picture: chosen.aug_fn(picture, *arguments, **chosen.kwargs)
