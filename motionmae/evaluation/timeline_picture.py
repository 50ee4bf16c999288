"""Picture of a timeline: the best class of each window as a coloured band, and the scores of some classes as lines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.files import atomic_path
from motionmae.outputs import SIGNATURE
from motionmae.text import picture_text

_MOST_COLOURS = 10


def draw_timeline(
    path: Path,
    video: str,
    names: Sequence[str],
    windows: tuple[NDArray[np.int64], NDArray[np.float64]],
    scores: NDArray[np.float32],
    classes: int,
) -> None:
    """Draw the scores of the ``classes`` classes with the highest peaks as a PNG.

    Args:
        windows: (windows, 2) each, first and last frame, and their times; frames are the axis if a time is NaN.
        scores: (windows, classes).
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # slow to import and needed only in this function

    timed = bool(np.isfinite(windows[1]).all())
    places = windows[int(timed)].astype(float)
    edges = [*places[:, 0].tolist(), float(places[-1, 1])]
    middles = places.mean(1)
    shown = np.argsort(-scores.max(0), kind="stable")[: min(classes, _MOST_COLOURS)]
    colours = {int(number): colormaps["tab10"](place) for place, number in enumerate(shown)}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    lines, band = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    for number, colour in colours.items():
        marker = "o" if len(middles) < 40 else None
        name = picture_text(names[number])
        lines.plot(middles, scores[:, number], color=colour, label=name, marker=marker, markersize=3)
    lines.set_ylim(0, 1.02)
    lines.set_ylabel("score of a window")
    lines.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    lines.grid(alpha=0.25)
    lines.set_title(picture_text(f"{video}: {len(middles)} windows"), fontsize=11, loc="left")
    for best, low, high in zip(scores.argmax(1), edges, edges[1:], strict=False):
        band.axvspan(low, max(high, low), color=colours.get(int(best), "0.8"), linewidth=0)
    band.set_yticks([])
    band.set_ylabel("best", rotation=0, ha="right", va="center")
    band.set_xlabel("seconds" if timed else "frame")
    band.set_xlim(edges[0], max(edges[-1], edges[0] + 1e-6))
    with atomic_path(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": SIGNATURE})
