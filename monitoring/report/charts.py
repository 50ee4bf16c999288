"""Geometry of the line charts, which report.html draws as inline SVG, sized for a phone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np

POINTS = 300  # maximum points of a curve. Longer curves are averaged.


@dataclass(frozen=True)
class Curve:
    """A line over steps. A value of None leaves a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    colour: str  # a CSS colour; CSS variables follow the light or dark page
    dashed: bool = False


class LineChart:
    """Curves over steps, or stacked areas, with the coordinates at which the template draws them.

    Args:
        curves: curves without a value are left out. Stacked curves share their steps and have no None.
        marks: (step, CSS colour) of dashed vertical lines.
        zero: start the vertical axis at 0.
    """

    frame = SimpleNamespace(width=480, height=250, left=54, right=470, top=10, bottom=224)
    """Size of the chart, and edges of the area in which curves are drawn."""

    def __init__(
        self,
        curves: Sequence[Curve],
        marks: Sequence[tuple[float, str]] = (),
        *,
        zero: bool = False,
        stacked: bool = False,
    ) -> None:
        self.curves = [thin(curve) for curve in curves if any(value is not None for value in curve.values)]
        self.stacked = stacked
        if not self.curves:
            return
        self._tops: Sequence[Sequence[float | None]] = [curve.values for curve in self.curves]
        if stacked:
            self._tops = np.array(self._tops, dtype=float).cumsum(axis=0).tolist()
        known = [value for values in self._tops for value in values if value is not None]
        low, high = (0.0 if zero or stacked else min(known)), max(known)
        margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        self._low, self._high = (0.0 if low == 0 else low - margin), high + margin
        self._first = min(curve.steps[0] for curve in self.curves)
        self._last = max(curve.steps[-1] for curve in self.curves)
        self.ticks_across, self.ticks_up = ticks(self._first, self._last), ticks(self._low, self._high)
        self.marks = [(step, colour) for step, colour in marks if self._first <= step <= self._last]

    def x(self, step: float) -> float:
        share = (step - self._first) / ((self._last - self._first) or 1)
        return round(self.frame.left + share * (self.frame.right - self.frame.left), 1)

    def y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(self.frame.bottom - share * (self.frame.bottom - self.frame.top), 1)

    def paths(self) -> Iterator[tuple[Curve, str]]:
        """Yield each curve with the SVG path of its line, or of the area down to the curve below."""
        below: Sequence[float | None] = [self._low] * len(self.curves[0].steps)
        for curve, values in zip(self.curves, self._tops, strict=True):
            points = list(zip(curve.steps, values, strict=True))
            if self.stacked:
                points += list(zip(curve.steps, below, strict=True))[::-1]
                below = values
            yield curve, self._path(points) + "Z" * self.stacked

    def data(self) -> dict[str, Any]:
        """Return the numbers that the page's script shows under the pointer."""
        curves = [[curve.name, curve.colour, curve.steps, list(map(_rounded, curve.values))] for curve in self.curves]
        edges = {"left": self.frame.left, "right": self.frame.right, "first": self._first, "last": self._last}
        return {**edges, "curves": curves}

    def _path(self, points: Sequence[tuple[float, float | None]]) -> str:
        words, pen = [], "M"
        for step, value in points:
            if value is None:
                pen = "M"
                continue
            words.append(f"{pen}{self.x(step)} {self.y(value)}")
            pen = "L"
        return "".join(words)


def thin(curve: Curve) -> Curve:
    """Average a curve down to at most POINTS points."""
    size = -(-len(curve.steps) // POINTS)
    if size <= 1:
        return curve
    steps, values = [], []
    for start in range(0, len(curve.steps), size):
        known = [value for value in curve.values[start : start + size] if value is not None]
        steps.append(curve.steps[min(start + size, len(curve.steps)) - 1])
        values.append(fmean(known) if known else None)
    return Curve(curve.name, steps, values, curve.colour, curve.dashed)


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between ``low`` and ``high``."""
    from matplotlib.ticker import MaxNLocator  # slow to import

    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high] or [low]


def short_number(value: float) -> str:
    """Format a number in few characters: 1.2k, 0.034, 3e-05."""
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-3:
        return f"{value:.2g}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
