"""Optical flow of a video's frames, for the paper's Table 7: dense inverse search (Kroeger et al. 2016, OpenCV)."""

from collections import deque

import cv2
import numpy as np

from motionmae.data.flow import encode_flow

Luma = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


class FlowRecorder:
    """Flow from each stored frame to the frame ``distance`` source frames later; where the video ends, to its last.

    Args:
        distance: in source frames, at least 1.
    """

    def __init__(self, distance: int):
        self._distance = distance
        self._waiting: deque[tuple[Luma, bool]] = deque()
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._fields: list[bytes] = []

    def add(self, luma: Luma, stored: bool) -> None:
        """Take the next source frame, (height, width) uint8, as it is stored; all frames have one size.

        Raises:
            cv2.error: it is too small (under about 16 pixels).
        """
        self._waiting.append((luma, stored))
        if len(self._waiting) > self._distance:
            self._measure(luma)

    def finish(self) -> list[bytes]:
        """The encoded field of each stored frame."""
        while self._waiting:
            self._measure(self._waiting[-1][0])
        return self._fields

    def _measure(self, later: Luma) -> None:
        earlier, stored = self._waiting.popleft()
        if stored:
            flow = np.zeros((*earlier.shape, 2), np.float32)
            self._fields.append(encode_flow(self._search.calc(earlier, later, flow)))
