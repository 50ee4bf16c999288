"""RandAugment and erasing of clips: timm's operations and probabilities, drawn once a clip by key."""

import random
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest
from motionmae.data.clip_sampling import segment_frames
from motionmae.data.rand_augment import ClipAugment, draw_operations, parse_policy
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError

POLICY = "rand-m9-mstd0.5-inc1"
SIZE = 32


def still_clip(seed: int = 0) -> np.ndarray:
    """Four equal frames."""
    frame = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return np.stack([frame] * 4)


def augmented(clip: np.ndarray, key: int, **data: object) -> np.ndarray:
    changed = clip.copy()
    ClipAugment(DataConfig(**data), SIZE)(changed, KeyedRandom("augment", 0, 0, key, 0))
    return changed


def test_one_policy_for_all_frames_keyed_by_the_sample_and_nothing_else():
    clip, changed = still_clip(), 0
    for key in range(40):
        random.seed(key % 3)  # timm's own source of chance must not show
        first = augmented(clip, key, rand_augment=POLICY)
        random.seed(99)
        assert np.array_equal(first, augmented(clip, key, rand_augment=POLICY))
        assert all(np.array_equal(frame, first[0]) for frame in first)
        changed += not np.array_equal(first, clip)
    assert 20 <= changed <= 40  # each of two layers acts with chance 1/2


def test_operations_are_drawn_as_timm_draws_them(monkeypatch: pytest.MonkeyPatch):
    """4,000 draws of both have the same operations, frequencies and ranges of arguments."""
    seen: dict[str, dict[str, list[float]]] = {"timm": {}, "ours": {}}
    who = "timm"

    def spy(name: str):
        def operation(picture: Image.Image, *arguments: float, **_: object) -> Image.Image:
            seen[who].setdefault(name, []).append(arguments[0] if arguments else 0.0)
            return picture

        return operation

    policy = parse_policy(POLICY, SIZE)
    for operation in policy.ops:
        monkeypatch.setattr(operation, "aug_fn", spy(operation.name))
    picture = Image.new("RGB", (4, 4))
    generator = random.Random(1)
    np.random.seed(0)
    random.seed(0)
    for _ in range(4000):
        policy(picture)
    who = "ours"
    for _ in range(4000):
        for operation in draw_operations(policy, generator):
            operation(picture)
    assert seen["timm"].keys() == seen["ours"].keys() == {operation.name for operation in policy.ops}
    for name, expected in seen["timm"].items():
        found = seen["ours"][name]
        assert len(found) == pytest.approx(len(expected), rel=0.25), name
        for quantile in (0.02, 0.25, 0.75, 0.98):
            spread = max(np.ptp(expected), 1e-9)
            assert abs(np.quantile(found, quantile) - np.quantile(expected, quantile)) < 0.1 * spread + 1e-9, name


def test_every_operation_of_timm_changes_pictures_through_us():
    assert {type(op) for op in parse_policy(POLICY, SIZE).ops} == {auto_augment.AugmentOp}
    clip = still_clip()
    assert len({augmented(clip, key, rand_augment="rand-m9-n4-p1-inc1").tobytes() for key in range(20)}) == 20


def test_erasing_fills_one_box_with_noise_in_all_frames():
    clip, areas = np.zeros((4, SIZE, SIZE, 3), np.uint8), []
    for key in range(60):
        changed = augmented(clip, key, random_erasing=1.0)
        touched = (changed != clip).any(axis=-1)
        rows, columns = (np.flatnonzero(touched.any(axis=(0, axis))) for axis in (2, 1))
        box = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert touched.sum() > 0.9 * box[..., 0].size  # nothing outside, nearly all inside (noise may be 0)
        assert not np.array_equal(box[0], box[1])
        areas.append(box[0, ..., 0].size / SIZE**2)
    assert 0.01 <= min(areas) < 0.1 < 0.25 < max(areas) <= 0.4  # timm: 0.02 to 1/3
    hit = [not np.array_equal(augmented(clip, key, random_erasing=0.25), clip) for key in range(200)]
    assert 30 <= sum(hit) <= 70


def test_noise_is_cut_off_at_black_and_white():
    """Noise beyond 0 to 255 becomes 0 or 255; a value below 1 is stored as 0."""
    black, white = (np.full((4, SIZE, SIZE, 3), value, np.uint8) for value in (0, 255))
    values = []
    for key in range(60):
        one, other = (augmented(clip, key, random_erasing=1.0) for clip in (black, white))
        values.append(one[(one == other).all(axis=-1)])  # pixels of the box: those outside stay black and white
    noise = np.concatenate(values)
    # ImageNet's mean and deviation of red, green and blue
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        normal = NormalDist(255 * mean, 255 * std)
        assert (noise[:, channel] == 0).mean() == pytest.approx(normal.cdf(1), abs=0.003)
        assert (noise[:, channel] == 255).mean() == pytest.approx(1 - normal.cdf(255), abs=0.003)


def test_each_repeat_of_a_sample_is_augmented_by_its_own_draws():
    request = ClipRequest(row=0, seed=1, epoch=2, sample=3, repeat=0)
    names = ("seed", "epoch", "sample", "repeat")
    others = [request._replace(**{name: getattr(request, name) + 1}) for name in names]
    assert len({one.augment_random.bits() for one in (request, *others)}) == 5
    assert request._replace(row=9).augment_random.bits() == request.augment_random.bits()


@pytest.mark.parametrize("policy", ["augmix-m5", "rand-m9-z3", "rand-m9-tweights"])
def test_what_timm_does_not_read_is_refused(policy: str):
    with pytest.raises(UserError, match=f"data.rand_augment={policy}"):
        ClipAugment(DataConfig(rand_augment=policy), SIZE)


@pytest.mark.parametrize("frames", [1, 3, 16, 17, 40, 163])
def test_segments_take_one_frame_of_each_equal_part(frames: int):
    meta = SampleMeta("s", "k", 0, 25.0, frames, 1, SIZE, SIZE, (0,), False)
    draws = np.array(
        [segment_frames(meta, ClipConfig(frames=16, size=SIZE), KeyedRandom("clip", key)) for key in range(300)]
    )
    assert draws.shape == (300, 16)
    assert (np.diff(draws, axis=1) >= 0).all()
    for part in range(16):
        low, high = part * frames // 16, max((part + 1) * frames // 16, part * frames // 16 + 1)
        assert set(draws[:, part]) == set(range(low, high))
