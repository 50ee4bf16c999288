"""Label propagation: scenes with a known answer, and the protocols against explicit loops."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from motionmae.errors import UserError
from motionmae.evaluation import ADAPTERS
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.davis.dataset import Sequence, read_mask, write_mask
from motionmae.evaluation.davis.frame_features import encode, encoder_features, pixel_features
from motionmae.evaluation.davis.propagation import PROTOCOLS, Protocol, decide, propagate, shrink_labels, working_size
from motionmae.evaluation.davis.run import FeatureExtractor, draw_overlays, segment, track
from motionmae.models.cubes import cut_patches
from motionmae.models.vit import Encoder
from tests.models.tiny import noise_clips, tiny

CELL = 16
CPU = torch.device("cpu")


def texture(rows: int = 30, columns: int = 52) -> np.ndarray:
    """An image whose cells are all different: uint8 (rows * 16, columns * 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (rows * CELL, columns * CELL, 3), np.uint8)


def stripes(columns: int = 52, first: int = 10) -> np.ndarray:
    """Two objects from top to bottom, on whole cells."""
    mask = np.zeros((480, columns * CELL), np.uint8)
    mask[:, first * CELL : (first + 5) * CELL] = 1
    mask[:, (first + 9) * CELL : (first + 12) * CELL] = 2
    return mask


def pixels() -> FeatureExtractor:
    return FeatureExtractor(CELL, lambda frames: pixel_features(frames, CELL))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_static_scene_propagates_perfectly(protocol: str):
    masks = list(track(stripes(), iter([texture()] * 6), pixels(), protocol))
    assert len(masks) == 6
    assert all(np.array_equal(mask, stripes()) for mask in masks)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_small_cells_in_small_frames_are_as_many_and_draw_the_same_masks(protocol: str):
    cell, sizes = CELL // 4, []

    def features(frames: Iterable[Tensor]) -> Iterator[Tensor]:
        frames = list(frames)
        sizes.extend(frame.shape[:2] for frame in frames)
        return pixel_features(frames, cell)

    scene = np.repeat(np.repeat(texture()[:120, :208], 4, axis=0), 4, axis=1)
    masks = list(track(stripes(), iter([scene] * 3), FeatureExtractor(cell, features, 120), protocol))
    assert sizes == [(120, 208)] * 3
    assert all(np.array_equal(mask, stripes()) for mask in masks)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_translated_scene_is_followed(protocol: str):
    scene = texture()
    frames = [np.roll(scene, CELL * shift, axis=1) for shift in range(6)]
    masks = list(track(stripes(), iter(frames), pixels(), protocol))
    for shift, mask in enumerate(masks):  # what came in at the left edge has no match within dino's window
        assert np.array_equal(mask[:, 5 * CELL :], np.roll(stripes(), CELL * shift, axis=1)[:, 5 * CELL :]), shift


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_static_scene_propagates_perfectly_through_every_adapter(adapter: str):
    """An untrained encoder; two time steps of 2 frames, cells of 8 pixels."""
    config = tiny()
    encoder = Encoder(config.clip, config.model).eval()
    frame = torch.from_numpy(texture(4, 6)[:64, :96].copy())
    labels = shrink_labels(
        np.repeat([[0, 0, 1, 1, 1, 0]], 64, 0).repeat(16, 1).astype(np.uint8), 8, 12, PROTOCOLS["dino"]
    )
    rules = Protocol(3, 1, 0.1, 12, True, False, 8, False, False)
    for soft in propagate(encoder_features([frame] * 5, encoder, adapter, CPU), labels, rules):
        assert torch.equal(soft.argmax(0), labels.argmax(0))


def by_loops(features: list[Tensor], labels: Tensor, protocol: Protocol) -> list[Tensor]:
    """The published rules, cell by cell: exp(cosine / T), zero outside the window, the top k, divided by their sum."""
    rows, columns = labels.shape[1:]
    answers = [labels]
    for now in range(1, len(features)):
        contexts = [0, *range(max(1, now - protocol.recent), now)]
        answer = torch.zeros_like(labels)
        for y in range(rows):
            for x in range(columns):
                query = features[now][:, y, x]
                found = []
                for context in contexts:
                    for v in range(rows):
                        for u in range(columns):
                            away = max(abs(v - y), abs(u - x)) if protocol.square else np.hypot(v - y, u - x)
                            inside = away <= protocol.radius if protocol.square else away < protocol.radius
                            if inside or (context == 0 and protocol.first_everywhere):
                                key = features[context][:, v, u]
                                cosine = torch.cosine_similarity(query, key, dim=0)
                                found.append((float(torch.exp(cosine / protocol.temperature)), context, v, u))
                best = sorted(found, reverse=True)[: protocol.top]
                total = sum(weight for weight, *_ in best)
                for weight, context, v, u in best:
                    answer[:, y, x] += weight / total * answers[context][:, v, u]
        answers.append(answer)
    return answers[1:]


@pytest.mark.parametrize(
    "protocol",
    [Protocol(2, 5, 0.1, 1, True, False, 64, False, True), Protocol(2, 4, 0.05, 2, False, True, 1, True, False)],
)
def test_propagation_equals_the_rules_in_loops(protocol: Protocol):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(6, 4, 5, generator=generator) for _ in range(5)]
    labels = torch.randint(0, 3, (4, 5), generator=generator)
    labels = torch.stack([(labels == number).float() for number in range(3)])
    found = list(propagate(features, labels, protocol))
    for ours, expected in zip(found, by_loops(features, labels, protocol), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_protocols_are_the_published_ones():
    """videowalk: the paper's section 4 and test.py of jabri2020's repository (--topk 10 --radius 12 --videoLen 20
    --temperature 0.05). dino: the defaults of eval_video_segmentation.py (n_last_frames 7, topk 5,
    size_mask_neighborhood 12; exp(similarity / 0.1); norm_mask; multiples of 64).
    """
    assert {
        "videowalk": Protocol(
            recent=20,
            top=10,
            temperature=0.05,
            radius=12,
            square=False,
            first_everywhere=True,
            long_multiple=1,
            bilinear_labels=True,
            stretch=False,
        ),
        "dino": Protocol(
            recent=7,
            top=5,
            temperature=0.1,
            radius=12,
            square=True,
            first_everywhere=False,
            long_multiple=64,
            bilinear_labels=False,
            stretch=True,
        ),
    } == PROTOCOLS


@pytest.mark.parametrize(("protocol", "right"), [("videowalk", 0), ("dino", 1)])
def test_only_dino_stretches_the_map_of_each_object(protocol: str, right: int):
    """The background leads everywhere; scaled to [0, 1], it has 1 and 0, and the object 0 and 1."""
    soft = torch.tensor([[[0.9, 0.6]], [[0.1, 0.4]]])
    mask = decide(soft, 16, 32, 16, PROTOCOLS[protocol])
    assert (mask[:, :8] == 0).all()
    assert (mask[:, -8:] == right).all()


def test_sizes_of_the_protocols():
    assert working_size(480, 854, 14, PROTOCOLS["dino"]) == (476, 826)  # 14 divides neither 480 nor 832
    assert working_size(480, 854, 14, PROTOCOLS["videowalk"]) == (476, 854)
    assert working_size(480, 854, 16, PROTOCOLS["dino"]) == (480, 832)  # as DINO has it
    assert working_size(480, 854, 16, PROTOCOLS["videowalk"]) == (480, 848)
    assert working_size(480, 854, 12, PROTOCOLS["dino"]) == (480, 828)  # cells that do not divide 832
    assert working_size(1920, 1080, 16, PROTOCOLS["videowalk"]) == (848, 480)
    assert working_size(480, 854, 4, PROTOCOLS["dino"], 120) == (120, 208)  # as many cells as 832 has of 16
    assert working_size(480, 854, 4, PROTOCOLS["videowalk"], 120) == (120, 212)
    assert working_size(352, 704, 16, PROTOCOLS["dino"]) == (480, 960)  # 480 / 352 has no exact float


def test_a_mask_off_the_grid_is_shrunk_as_dino_does():
    """DINO's read_seg: the mask's image, resized by Pillow to the nearest pixel."""
    mask = np.zeros((480, 832), np.uint8)
    cv2.circle(mask, (301, 203), 77, 1, -1)
    cv2.circle(mask, (611, 290), 50, 2, -1)
    expected = np.asarray(Image.fromarray(mask).resize((52, 30), 0))
    labels = shrink_labels(mask, 30, 52, PROTOCOLS["dino"])
    assert np.array_equal(labels.argmax(0).numpy(), expected)
    back = decide(labels, 480, 832, CELL, PROTOCOLS["dino"])
    rows, columns = np.nonzero(mask == 1)
    found = np.nonzero(back == 1)
    assert abs(found[0].mean() - rows.mean()) < 2
    assert abs(found[1].mean() - columns.mean()) < 2


def test_a_whole_clip_at_its_own_size_encodes_as_the_encoder_does():
    config = tiny()
    encoder = Encoder(config.clip, config.model).eval()
    clip = noise_clips(config, 1)[0]
    grid = config.clip.grid_size
    with torch.no_grad():
        tokens = encoder(cut_patches(clip[None], config.clip.cube_size))[0, -grid * grid :]
    torch.testing.assert_close(encode(clip, encoder).flatten(1).t(), tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("adapter", "back"), [("duplicate", 0), ("pairs", 1), ("sliding", 6)])
def test_adapters_look_back_as_far_as_they_say_and_never_ahead(adapter: str, back: int):
    """Tiny clips of 8 frames in 4 cubes: `sliding` sees the six before the one that fills the last cube."""
    config = tiny()
    encoder = Encoder(config.clip, config.model).eval()
    frames = list(noise_clips(tiny(clip={"frames": 12}), 1)[0])
    before = list(encoder_features(frames, encoder, adapter, CPU))
    frames[3] = 255 - frames[3]
    after = list(encoder_features(frames, encoder, adapter, CPU))
    changed = [number for number in range(12) if not torch.equal(before[number], after[number])]
    assert changed == list(range(3, 4 + back))


def test_masks_that_are_there_are_not_made_again_and_can_be_looked_at(tmp_path: Path):
    sequence = tiny_sequence(tmp_path)
    key = CacheKey("", str(tmp_path), {"features": "pixels", "protocol": "dino"})
    segment([sequence], pixels(), "dino", tmp_path / "out", key)
    assert all(np.array_equal(read_mask(tmp_path / "out" / "roll" / p.name), stripes()) for p in sequence.masks)

    def never(frames: object) -> None:
        raise AssertionError("computed again")

    segment([sequence], FeatureExtractor(CELL, never), "dino", tmp_path / "out", key)
    for other in (
        CacheKey("ab12", str(tmp_path), key.settings),
        CacheKey("", str(tmp_path), {"protocol": "videowalk"}),
    ):
        with pytest.raises(
            UserError, match=r"(weights: none there, ab12|protocol: dino there, videowalk).*another --out"
        ):
            segment([sequence], FeatureExtractor(CELL, never), "dino", tmp_path / "out", other)
    shifted = np.roll(stripes(), CELL, axis=1)
    write_mask(sequence.masks[0], shifted)  # under its name: what was made of the old one is stale
    segment([sequence], pixels(), "dino", tmp_path / "out", key)
    assert np.array_equal(read_mask(tmp_path / "out" / "roll" / sequence.masks[0].name), shifted)
    [strip] = draw_overlays([sequence], tmp_path / "out", "png")
    assert cv2.imread(str(strip)).std() > 10
    [video] = draw_overlays([sequence], tmp_path / "out", "mp4")
    assert int(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT)) == 3


def tiny_sequence(folder: Path) -> Sequence:
    """Three equal frames."""
    frames, masks = [], []
    for number in range(3):
        frames.append(folder / f"0000{number}.jpg")
        cv2.imwrite(str(frames[-1]), texture())
        masks.append(folder / f"0000{number}.png")
        write_mask(masks[-1], stripes())
    return Sequence("roll", tuple(frames), tuple(masks))
