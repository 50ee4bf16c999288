"""Reconstructions: the right pixels in the right rows."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from motionmae.data.open_shards import open_reader
from motionmae.errors import UserError
from motionmae.evaluation.reconstructions import make_block, read_clips, write_png
from motionmae.models.motionmae import Reconstruction, build_motionmae
from tests.data.test_flow import make_flow_shards
from tests.models.tiny import moving_clips, tiny

SEEDS = torch.tensor([5, 6])


def reconstruct(**sections: dict[str, object]) -> Reconstruction:
    config = tiny(**sections)
    return build_motionmae(config).reconstruct(moving_clips(config, 2), SEEDS)


def frame(strip: np.ndarray, number: int, size: int = 32) -> np.ndarray:
    start = number * (size + 1)  # a white column right of each frame
    return strip[:, start : start + size]


def test_rows_hold_the_clip_and_its_mask() -> None:
    found = reconstruct()
    block = make_block("title", found, clip=1, columns=4)
    rows = dict(block.rows)
    assert list(rows) == ["original", "masked", "space head", "motion target", "time head"]
    shown = [0, 2, 5, 7]  # 4 of 8 frames, spread evenly
    for column, number in enumerate(shown):
        np.testing.assert_allclose(frame(rows["original"], column), found.clip[1, number].numpy(), atol=1e-6)
        masked = found.mask[1, number // 2].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        np.testing.assert_array_equal(frame(rows["masked"], column)[masked], 0.5)
        visible = frame(rows["space head"], column)[~masked]
        np.testing.assert_allclose(visible, found.clip[1, number].numpy()[~masked], atol=1e-6)


def test_masked_cubes_alone_can_be_shown() -> None:
    found = reconstruct()
    whole, alone = (dict(make_block("", found, 1, 8, masked_only=only).rows) for only in (False, True))
    for number in range(8):
        masked = found.mask[1, number // 2].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        for row, elsewhere in (("space head", 0.5), ("time head", 0.0)):
            shown = frame(alone[row], number)
            np.testing.assert_array_equal(shown[~masked], elsewhere)
            np.testing.assert_array_equal(shown[masked], frame(whole[row], number)[masked])
    assert np.array_equal(alone["motion target"], whole["motion target"])


@pytest.mark.parametrize(("kind", "rows"), [("frame", 3), ("motion", 4), ("both", 5)])
def test_only_trained_heads_have_rows(kind: str, rows: int) -> None:
    assert len(make_block("", reconstruct(target={"kind": kind}), 0, 8).rows) == rows


def test_flow_is_read_with_the_clips_and_drawn(tmp_path: Path) -> None:
    config = tiny(target={"motion_source": "flow"}, clip={"stride": 1})
    reader = open_reader(make_flow_shards(tmp_path))
    clips, flow = read_clips(reader, [0, 4], config)
    assert flow is not None
    assert torch.equal(flow[:, :, 5, 5, 0], torch.arange(2, 10).expand(2, -1))  # the middle 8 of frames 1 to 10
    found = build_motionmae(config).reconstruct(clips, SEEDS, None, flow)
    rows = dict(make_block("", found, 1, 8).rows)
    hue = rows["motion target"].reshape(32, 8, 33, 3)[:, :, 5]  # (n, -2 n): one hue, brighter with n
    assert (np.diff(hue.max(-1).mean(0)) > 0).all()
    assert read_clips(reader, [0], tiny(clip={"stride": 1}))[1] is None
    with pytest.raises(UserError, match="sample 6 does not exist"):
        read_clips(reader, [6], config)


def test_the_hue_of_flow_is_its_direction_and_the_brightness_its_speed() -> None:
    """Right is red; from there the hue turns towards down, which is yellow-green, left (cyan) and up (violet)."""
    flow = torch.tensor([(2.0, 0.0), (0.0, 2.0), (-2.0, 0.0), (0.0, -2.0), (1.0, 0.0)])  # of each frame, as (x, y)
    flow = flow.view(1, 5, 1, 1, 2).repeat(1, 1, 8, 8, 1)
    clip, mask = torch.zeros(1, 5, 8, 8, 3), torch.ones(1, 5, 1, 1, dtype=torch.bool)
    rows = dict(make_block("", Reconstruction(clip, clip, None, flow, flow, mask, False), 0, 5).rows)
    colours = [(1, 0, 0), (0.5, 1, 0), (0, 1, 1), (0.5, 0, 1), (0.5, 0, 0)]
    for row in ("motion target", "time head"):
        for number, colour in enumerate(colours):
            np.testing.assert_allclose(frame(rows[row], number, 8), np.broadcast_to(colour, (8, 8, 3)), atol=1e-5)


def test_signed_motion_lies_around_grey() -> None:
    rows = dict(make_block("", reconstruct(target={"motion_sign": "signed"}), 0, 8).rows)
    assert abs(float(np.median(rows["motion target"])) - 0.5) < 0.1
    absolute = dict(make_block("", reconstruct(), 0, 8).rows)["motion target"]
    assert frame(absolute, 3).min() < 0.1


def test_png_has_a_strip_for_every_row(tmp_path: Path) -> None:
    blocks = [make_block("one", reconstruct(), 0, 4), make_block("two", reconstruct(), 1, 4)]
    write_png(blocks[:1], tmp_path / "one.png", "heading")
    write_png(blocks, tmp_path / "sub" / "two.png", "heading")
    one, two = cv2.imread(str(tmp_path / "one.png")), cv2.imread(str(tmp_path / "sub" / "two.png"))
    assert one.shape[1] == two.shape[1]
    assert 1.7 < two.shape[0] / one.shape[0] < 2
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["two.png"]
