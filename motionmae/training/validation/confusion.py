"""Picture of a confusion matrix."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.files import atomic_path
from motionmae.outputs import SIGNATURE
from motionmae.text import picture_text


def draw_confusion(path: Path, confusion: NDArray[np.int64], names: tuple[str, ...], heading: str) -> None:
    """Draw the row-normalised confusion matrix as a PNG. Names and counts are shown for up to 30 classes."""
    from matplotlib.figure import Figure  # slow to import and needed only in this function

    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    few = len(names) <= 30
    size = (max(5.0, 0.5 * len(names)), max(4.5, 0.45 * len(names))) if few else (11, 10)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if few:
        labels = [picture_text(name) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), labels, fontsize=8)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(picture_text(heading), fontsize=10)
    with atomic_path(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": SIGNATURE})
