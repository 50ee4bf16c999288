"""Charts as inline SVG, sized for a phone. Colours are CSS variables, for a light and a dark page.

Each chart has its numbers as JSON in ``data-chart``. The page's script shows the values under the pointer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

WIDTH, HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 10, 26
POINTS = 300
"""Maximum points of a curve. Longer curves are averaged."""


@dataclass(frozen=True)
class Curve:
    """A line over steps. A value of None leaves a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    colour: str
    """A CSS colour."""
    dashed: bool = False


@dataclass(frozen=True)
class Slice:
    """A share of a ring chart."""

    name: str
    value: float
    colour: str


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


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers between ``low`` and ``high``."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Format a number in few characters: 1.2k, 0.034, 3e-05."""
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-3:
        return f"{value:.2g}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def line_chart(
    curves: Sequence[Curve], marks: Sequence[tuple[float, str]] = (), *, zero: bool = False, stacked: bool = False
) -> str:
    """Draw curves over steps, or stacked areas.

    Args:
        curves: curves without a value are left out. Stacked curves share their steps and have no None.
        marks: (step, CSS colour) of dashed vertical lines.
        zero: start the vertical axis at 0.
    """
    curves = [thin(curve) for curve in curves if any(value is not None for value in curve.values)]
    if not curves:
        return '<p class="none">nothing logged</p>'
    tops = _stack(curves) if stacked else [curve.values for curve in curves]
    known = [value for values in tops for value in values if value is not None]
    low, high = (0.0 if zero or stacked else min(known)), max(known)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = (0.0 if low == 0 else low - margin), high + margin
    first, last = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)

    def x(step: float) -> float:
        return _LEFT + (step - first) / ((last - first) or 1) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [_grid(x, y, ticks(first, last), ticks(low, high))]
    parts += [
        f'<path class="mark" d="M{x(step):.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="{colour}"/>'
        for step, colour in marks
        if first <= step <= last
    ]
    below: Sequence[float | None] = [low] * len(curves[0].steps)
    for curve, values in zip(curves, tops, strict=True):
        points = [(x(s), None if v is None else y(v)) for s, v in zip(curve.steps, values, strict=True)]
        if stacked:
            back = [(x(s), y(v or 0.0)) for s, v in zip(curve.steps, below, strict=True)][::-1]
            parts.append(f'<path class="area" fill="{curve.colour}" d="{_path([*points, *back])}Z"/>')
            below = values
        else:
            dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
            parts.append(f'<path class="curve" stroke="{curve.colour}"{dash} d="{_path(points)}"/>')
    data = {
        "left": _LEFT, "right": WIDTH - _RIGHT, "first": first, "last": last,
        "curves": [[c.name, c.colour, list(c.steps), [_rounded(v) for v in c.values]] for c in curves],
    }  # fmt: skip
    legend = "".join(
        f'<span><i style="background:{curve.colour}"></i>{escape(curve.name)}</span>' for curve in curves if curve.name
    )
    return (
        f'<div class="chart" data-chart="{escape(json.dumps(data, separators=(",", ":")))}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}'
        f'<line class="pointer" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg><div class="tip"></div></div>'
        f'<div class="legend">{legend}</div>'
    )


def donut(slices: Sequence[Slice], middle: str, below: str) -> str:
    """Draw a ring chart with two lines of text in its middle."""
    total = sum(part.value for part in slices) or 1.0
    radius, parts, angle = 40.0, [], 0.0
    around = 2 * math.pi * radius
    for part in slices:
        length = part.value / total * around
        parts.append(
            f'<circle r="{radius}" cx="60" cy="60" stroke="{part.colour}" stroke-dasharray="{length:.3f} {around:.3f}" '
            f'stroke-dashoffset="{-angle:.3f}"><title>{escape(part.name)}: {part.value / total:.1%}</title></circle>'
        )
        angle += length
    return (
        f'<svg class="donut" viewBox="0 0 120 120" role="img"><g transform="rotate(-90 60 60)">{"".join(parts)}</g>'
        f'<text x="60" y="61" class="big">{escape(middle)}</text><text x="60" y="74">{escape(below)}</text></svg>'
    )


def strip(slices: Sequence[tuple[float, float, str, str]]) -> str:
    """Draw intervals of time on a line, as (begin, end, colour, title) in seconds from the start."""
    total = max((end for _, end, _, _ in slices), default=1.0) or 1.0
    blocks = "".join(
        f'<rect x="{begin / total * 1000:.2f}" width="{max(end - begin, 0) / total * 1000:.2f}" y="0" height="26" '
        f'fill="{colour}"><title>{escape(what)}</title></rect>'
        for begin, end, colour, what in slices
    )
    return f'<svg class="strip" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img">{blocks}</svg>'


def _stack(curves: Sequence[Curve]) -> list[list[float]]:
    total, tops = [0.0] * len(curves[0].steps), []
    for curve in curves:
        total = [a + (b or 0.0) for a, b in zip(total, curve.values, strict=True)]
        tops.append(total)
    return tops


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    words, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(words)


def _grid(x, y, across: Sequence[float], up: Sequence[float]) -> str:  # type: ignore[no-untyped-def]
    lines = "".join(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>'
        for value in up
    )
    steps = "".join(
        f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(step)}</text>' for step in across
    )
    return f'<g class="grid">{lines}{steps}</g>'


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
