"""A folder of DAVIS for tests, with drawn sequences."""

from pathlib import Path

import cv2
import numpy as np

from motionmae.evaluation.davis.dataset import write_mask


def write_sequence(davis: Path, name: str, frames: int, masks: int, size: tuple[int, int] = (20, 30)) -> None:
    """Frames of one colour, and masks of object 1 in the left half."""
    for kind in ("JPEGImages", "Annotations"):
        (davis / kind / "480p" / name).mkdir(parents=True)
    picture = np.full((*size, 3), (10, 100, 200), np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 1
    for number in range(frames):
        cv2.imwrite(str(davis / "JPEGImages/480p" / name / f"{number:05d}.jpg"), picture[..., ::-1])
    for number in range(masks):
        write_mask(davis / "Annotations/480p" / name / f"{number:05d}.png", mask)


def write_list(davis: Path, *names: str) -> None:
    (davis / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (davis / "ImageSets/2017/val.txt").write_text("\n".join(names))
