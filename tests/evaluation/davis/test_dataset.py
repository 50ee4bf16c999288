"""Files of DAVIS: frames, masks, and overlays, worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motionmae.errors import UserError
from motionmae.evaluation.davis.dataset import (
    Sequence,
    overlay,
    palette,
    read_mask,
    read_sequences,
    score_folder,
    write_mask,
)
from tests.evaluation.davis.sequences import write_list, write_sequence


def test_sequences_are_read_in_the_order_of_the_list_and_frames_in_theirs(tmp_path: Path):
    write_sequence(tmp_path, "b", 3, 3)
    write_sequence(tmp_path, "a", 3, 1)
    write_list(tmp_path, "b", "a")
    first, second = read_sequences(tmp_path)
    assert (first.name, first.annotated, second.name, second.annotated) == ("b", True, "a", False)
    assert [path.name for path in first.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert [path.name for path in first.masks] == ["00000.png", "00001.png", "00002.png"]
    assert np.abs(first.frame(1).astype(int) - (10, 100, 200)).max() < 6  # red, green, blue
    assert first.first_mask().tolist() == [[1] * 15 + [0] * 15] * 20


def test_void_is_background_in_the_first_mask(tmp_path: Path):
    mask = np.array([[0, 1, 255], [2, 255, 1]], np.uint8)
    write_mask(tmp_path / "m.png", mask)
    first = Sequence("s", (), (tmp_path / "m.png",)).first_mask()
    assert (first.tolist(), first.dtype) == ([[0, 1, 0], [2, 0, 1]], np.uint8)


def test_a_first_frame_without_its_mask_is_named(tmp_path: Path):
    write_sequence(tmp_path, "a", 3, 3)
    write_list(tmp_path, "a")
    (tmp_path / "JPEGImages/480p/a/00000.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages/480p/a/00000\.jpg is missing"):
        read_sequences(tmp_path)
    (tmp_path / "Annotations/480p/a/00000.png").unlink()
    (sequence,) = read_sequences(tmp_path)  # both begin with 00001
    assert len(sequence.frames) == 2
    sequence.frames[0].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"00001\.jpg is not a readable image"):
        sequence.frame(0)


@pytest.mark.parametrize(
    ("frames", "masks", "text"),
    [
        (4, 3, "a has 4 frames but 3 annotated masks"),
        (2, 2, "a has 2 frames, and the first and the last do not count"),
        (3, 3, ""),
    ],
)
def test_a_sequence_needs_an_annotation_of_each_frame_and_a_frame_that_counts(
    frames: int, masks: int, text: str, tmp_path: Path
):
    write_sequence(tmp_path, "a", frames, masks)
    write_list(tmp_path, "a")
    sequences = read_sequences(tmp_path)
    results = tmp_path / "results"
    for path in sequences[0].masks:
        write_mask(results / "a" / path.name, read_mask(path))
    if text:
        with pytest.raises(UserError, match=text):
            score_folder(sequences, results)
    else:
        assert {name: score["J"].mean for name, score in score_folder(sequences, results).items()} == {"a_1": 1.0}


def test_results_of_another_size_and_sequences_without_an_object_are_refused(tmp_path: Path):
    write_sequence(tmp_path, "a", 3, 3)
    write_list(tmp_path, "a")
    sequences = read_sequences(tmp_path)
    for path in sequences[0].masks:
        write_mask(tmp_path / "results/a" / path.name, np.zeros((20, 31), np.uint8))
    with pytest.raises(UserError, match=r"is \(20, 31\), its annotation \(20, 30\)"):
        score_folder(sequences, tmp_path / "results")
    for path in sequences[0].masks:
        for folder in (path.parent, tmp_path / "results/a"):
            write_mask(folder / path.name, np.zeros((20, 30), np.uint8))
    with pytest.raises(UserError, match="the first masks of all 1 sequences are empty"):
        score_folder(sequences, tmp_path / "results")


def test_a_mask_in_colours_is_refused(tmp_path: Path):
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"rgb\.png has 3 channels: masks must be palette PNGs"):
        read_mask(tmp_path / "rgb.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"torn\.png is not a readable image"):
        read_mask(tmp_path / "torn.png")
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png").flatten().tolist() == list(range(20))


def test_the_palette_is_that_of_pascal_voc():
    """The bits of a number become those of red, green and blue in turn, the highest first."""
    found = palette()
    assert found.shape == (256, 3)
    assert found[[5, 8, 21, 64, 255]].tolist() == [
        [128, 0, 128], [64, 0, 0], [128, 64, 128], [32, 0, 0], [224, 224, 192],
    ]  # fmt: skip


def test_an_overlay_tints_objects_by_half_and_outlines_them():
    frame = np.full((7, 9, 3), 100, np.uint8)
    mask = np.zeros((7, 9), np.uint8)
    mask[1:6, 1:6] = 1  # (128, 0, 0)
    drawn = overlay(frame, mask)
    assert (frame == 100).all()
    inner = np.zeros((7, 9), bool)
    inner[2:5, 2:5] = True
    assert (drawn[inner] == (114, 50, 50)).all()
    assert (drawn[(mask == 1) & ~inner] == (128, 0, 0)).all()
    assert (drawn[mask == 0] == 100).all()
