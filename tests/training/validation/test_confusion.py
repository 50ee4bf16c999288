"""Picture of a confusion matrix, as matplotlib is told to draw it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from motionmae.outputs import SIGNATURE
from motionmae.training.validation.confusion import draw_confusion


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *words: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *words, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_rows_are_shares_of_the_true_class_with_names_and_counts(drawn: list[Figure], tmp_path: Path):
    """Counts are white where a field is dark: above 60 %."""
    confusion = np.array([[7, 3, 0], [4, 6, 0], [0, 0, 0]])
    draw_confusion(tmp_path / "c.png", confusion, ("run", "sit", "eat"), "heading")
    axes = drawn[0].axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.tolist() == [[0.7, 0.3, 0], [0.4, 0.6, 0], [0, 0, 0]]  # a class without videos is empty
    assert axes.images[0].get_clim() == (0, 1)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", "heading")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["run", "sit", "eat"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["run", "sit", "eat"]
    found = {text.get_text(): (*text.get_position(), text.get_color()) for text in axes.texts}
    assert found == {"7": (0, 0, "white"), "3": (1, 0, "black"), "4": (0, 1, "black"), "6": (1, 1, "black")}
    assert Image.open(tmp_path / "c.png").text["Software"] == SIGNATURE  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.png"]


@pytest.mark.parametrize(("classes", "texts", "size"), [(2, 2, (5.0, 4.5)), (30, 30, (15.0, 13.5)), (31, 0, (11, 10))])
def test_up_to_thirty_classes_have_names_and_counts(
    classes: int, texts: int, size: tuple[float, float], drawn: list[Figure], tmp_path: Path
):
    names = tuple(f"class {number}" for number in range(classes))
    draw_confusion(tmp_path / "c.png", np.eye(classes, dtype=np.int64), names, "heading")
    axes = drawn[0].axes[0]
    assert len(axes.texts) == texts
    assert ("class 1" in [label.get_text() for label in axes.get_yticklabels()]) == (texts > 0)
    assert tuple(drawn[0].get_size_inches()) == pytest.approx(size)
    height, width, _ = cv2.imread(str(tmp_path / "c.png")).shape
    assert (width, height) == pytest.approx((130 * size[0], 130 * size[1]), abs=1)
