"""Cache keys: a folder is reused only with the same key."""

from dataclasses import replace
from pathlib import Path

import pytest

from motionmae.errors import UserError
from motionmae.evaluation.cache_key import FILE_NAME, CacheKey

OURS = CacheKey("0123456789abcdef", "/videos", {"frames": 16, "scale": (0.5, 1.0)})


def test_a_folder_is_used_again_for_the_same_only(tmp_path: Path):
    folder = tmp_path / "new" / "out"
    OURS.bind(folder)
    (folder / "result").touch()
    OURS.bind(folder)
    others = {
        "weights: 0123456789ab there, none here": replace(OURS, weights=""),
        "inputs: /videos there, /films here": replace(OURS, inputs="/films"),
        "frames: 16 there, 8 here; crops: None there, 3 here": replace(
            OURS, settings=OURS.settings | {"frames": 8, "crops": 3}
        ),
    }
    for said, other in others.items():
        with pytest.raises(UserError, match="choose another --out") as caught:
            other.bind(folder)
        assert f"({said})" in str(caught.value)
        assert other.digest != OURS.digest


def test_a_folder_without_a_key_is_not_used(tmp_path: Path):
    (tmp_path / "mask.png").touch()
    with pytest.raises(UserError, match=r"contains files but no cache_key\.json"):
        OURS.bind(tmp_path)
    for content in ("{", "[]", '{"weights": ""}'):
        (tmp_path / FILE_NAME).write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            OURS.bind(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        OURS.bind(tmp_path / "mask.png")
