"""Segmentation of sequences: what is done again, what is drawn, and which settings make other masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.davis import run as module
from motionmae.evaluation.davis.dataset import read_sequences, write_mask
from motionmae.evaluation.davis.frame_features import pixel_features
from motionmae.evaluation.davis.run import FeatureExtractor, draw_overlays, open_features, segment, track
from motionmae.evaluation.weights_source import find_weights
from tests.evaluation.davis.sequences import write_list, write_sequence
from tests.evaluation.huggingface import save_huggingface

REPEAT = FeatureExtractor(1, None)
KEY = CacheKey("", "davis", {"features": "repeat"})


def test_the_first_mask_is_repeated():
    mask = np.array([[0, 1], [2, 0]], np.uint8)
    found = list(track(mask, iter([mask] * 3), REPEAT, "dino"))
    assert [each.tolist() for each in found] == [mask.tolist()] * 3


@pytest.mark.parametrize("harm", ["stamp", "mask", "frame"])
def test_a_sequence_is_made_again_if_anything_of_it_is_missing_or_new(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    davis, out = tmp_path / "davis", tmp_path / "out"
    for name in ("a", "b"):
        write_sequence(davis, name, 3, 1)
    write_list(davis, "a", "b")
    sequences, made = read_sequences(davis), []
    monkeypatch.setattr(module, "track", lambda first, frames, *_: made.append("made") or (first for _ in frames))
    segment(sequences, REPEAT, "dino", out, KEY)
    segment(sequences, REPEAT, "dino", out, KEY)
    assert len(made) == 2
    if harm == "stamp":
        (out / "b.sha256").unlink()
    elif harm == "mask":
        (out / "b/00002.png").unlink()
    else:
        cv2.imwrite(str(davis / "JPEGImages/480p/b/00002.jpg"), np.zeros((20, 30, 3), np.uint8))
    segment(sequences, REPEAT, "dino", out, KEY)
    assert len(made) == 3
    assert sorted(path.name for path in (out / "b").iterdir()) == ["00000.png", "00001.png", "00002.png"]


def test_no_stamp_stays_while_a_sequence_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sequence(tmp_path / "davis", "a", 3, 1)
    write_list(tmp_path / "davis", "a")
    sequences = read_sequences(tmp_path / "davis")
    segment(sequences, REPEAT, "dino", tmp_path / "out", KEY)
    (tmp_path / "out/a/00001.png").unlink()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "track", killed)
    with pytest.raises(KeyboardInterrupt):
        segment(sequences, REPEAT, "dino", tmp_path / "out", KEY)
    assert not (tmp_path / "out/a.sha256").exists()


@pytest.mark.parametrize(("frames", "drawn"), [(3, 3), (8, 8), (20, 8)])
def test_a_strip_has_eight_frames_from_the_first_to_the_last(frames: int, drawn: int, tmp_path: Path):
    davis, out = tmp_path / "davis", tmp_path / "out"
    write_sequence(davis, "a", frames, 1, (20, 30))
    write_list(davis, "a")
    for number in range(frames):  # the masks of the first and the last frame alone are not empty
        mask = np.full((20, 30), number in (0, frames - 1), np.uint8)
        write_mask(out / "a" / f"{number:05d}.png", mask)
    [path] = draw_overlays(read_sequences(davis), out, "png")
    strip = cv2.imread(str(path))[..., ::-1]
    assert strip.shape == (8, 12 * drawn, 3)  # 0.4 of their size
    tinted = [bool(abs(int(strip[4, 12 * number + 6, 0]) - 69) < 8) for number in range(drawn)]  # (10 + 128) / 2
    assert tinted == [True, *[False] * (drawn - 2), True]


def test_features_without_an_encoder(tmp_path: Path):
    extractor, key = open_features("repeat", None, "dino", "pairs", tmp_path)
    assert (extractor, key.settings, key.weights) == (REPEAT, {"features": "repeat"}, "")
    assert key.inputs == str(tmp_path.resolve())
    extractor, key = open_features("pixels", None, "dino", "pairs", tmp_path)
    assert (extractor.cell, extractor.short_side, key.settings) == (16, 480, {"features": "pixels", "protocol": "dino"})
    for kind in ("repeat", "pixels"):
        with pytest.raises(UserError, match=f"--short-side needs an encoder, and --features {kind} has none"):
            open_features(kind, None, "dino", "pairs", tmp_path, 240)


def test_masks_of_an_encoder_depend_on_all_that_changes_them(tmp_path: Path):
    theirs = tmp_path / "hf"
    save_huggingface(theirs)
    found = {}
    for adapter in ("pairs", "duplicate"):
        extractor, key = open_features("encoder", find_weights(theirs), "dino", adapter, tmp_path, 64)
        assert (extractor.cell, extractor.short_side, key.inputs) == (8, 64, str(tmp_path.resolve()))
        expected = {"features": "encoder", "step": None, "protocol": "dino", "adapter": adapter, "short_side": 64}
        assert key.settings == expected
        found[adapter] = key
    assert found["pairs"].weights == found["duplicate"].weights != ""
    assert found["pairs"].digest != found["duplicate"].digest
    _, drawn = open_features("random", find_weights(theirs), "dino", "pairs", tmp_path)
    assert drawn.settings == {"features": "random", "step": None, "protocol": "dino", "adapter": "pairs"}
    assert drawn.weights != found["pairs"].weights
    with pytest.raises(UserError, match="--short-side 7 is smaller than a patch of hf: give at least 8"):
        open_features("encoder", find_weights(theirs), "dino", "pairs", tmp_path, 7)


def test_pixels_of_a_patch_are_normalised_and_in_order():
    """The six numbers are ImageNet's mean and standard deviation."""
    frame = torch.arange(4 * 6 * 3, dtype=torch.uint8).view(4, 6, 3)
    (found,) = pixel_features([frame], 2)
    assert found.shape == (12, 2, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    patch = (frame[2:4, 4:6].float() / 255 - mean) / std
    torch.testing.assert_close(found[:, 1, 2], patch.flatten())
