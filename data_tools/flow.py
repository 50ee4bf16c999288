"""Compute optical flow for the paper's Table 7 with OpenCV's dense inverse search (Kroeger et al. 2016)."""

from collections import deque

import cv2
import numpy as np

from motionmae.data.flow import encode_flow

Luma = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


class FlowRecorder:
    """Computes flow from each stored frame to the frame ``distance`` >= 1 source frames later, or to the last frame."""

    def __init__(self, distance: int):
        self._distance = distance
        self._waiting: deque[tuple[Luma, bool]] = deque()
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._fields: list[bytes] = []

    def add(self, luma: Luma, stored: bool) -> None:
        """Add the next source frame, uint8 (height, width). Raises cv2.error for frames below about 16 pixels."""
        self._waiting.append((luma, stored))
        if len(self._waiting) > self._distance:
            self._compute_flow(luma)

    def finish(self) -> list[bytes]:
        """Return the encoded flow field of each stored frame."""
        while self._waiting:
            self._compute_flow(self._waiting[-1][0])
        return self._fields

    def _compute_flow(self, later: Luma) -> None:
        earlier, stored = self._waiting.popleft()
        if stored:
            flow = np.zeros((*earlier.shape, 2), np.float32)
            self._fields.append(encode_flow(self._search.calc(earlier, later, flow)))
