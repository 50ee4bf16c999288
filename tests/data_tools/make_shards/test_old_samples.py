from types import SimpleNamespace
from typing import Any

import pytest

from data_tools.make_shards.old_samples import OldSamples, is_better, reach_end
from motionmae.data.shards.stored_samples import StoredSample


def sample(
    frames: int = 10, packets: int = 0, *, intact: bool = True, last: bool = True, label: int = 1
) -> StoredSample:
    meta = {"source_frames": frames, "frames": frames, "damaged_packets": packets, "last_segment": last, "label": label}
    return StoredSample({}, meta, intact)


@pytest.mark.parametrize(
    ("stored", "now", "better"),
    [
        (sample(10), (9, 0), True),
        (sample(10), (10, 0), False),
        (sample(10), (10, 1), True),  # as many frames, and one packet less is damaged
        (sample(10, 2), (10, 1), False),
        (sample(10, 5), (9, 0), True),
        (sample(10, intact=False), (1, 9), False),
        (sample(10), (11, 9), False),
    ],
)
def test_more_frames_are_better_and_then_fewer_damaged_packets(
    stored: StoredSample, now: tuple[int, int], better: bool
):
    decoded: Any = SimpleNamespace(source_frames=now[0], damaged_packets=now[1])
    assert is_better(stored, decoded) is better


@pytest.mark.parametrize(
    ("segments", "first", "reached"),
    [
        ([], 0, False),
        ([(0, True)], 0, True),
        ([(0, False)], 0, False),
        ([(0, False), (1, True)], 0, True),
        ([(0, False), (2, True)], 0, False),
        ([(1, False), (2, True)], 0, False),
        ([(1, False), (2, True)], 1, True),
        ([(0, True), (1, False)], 0, False),
    ],
)
def test_all_segments_up_to_the_last_reach_the_end(segments: list[tuple[int, bool]], first: int, reached: bool):
    assert reach_end(segments, first) is reached


class Shard:
    """Shard whose reads are counted."""

    def __init__(self, samples: dict[str, StoredSample]) -> None:
        self.samples, self.read_keys = samples, []

    def read(self, key: str) -> StoredSample | None:
        self.read_keys.append(key)
        return self.samples.get(key)


def old_of(*samples: StoredSample | None) -> tuple[OldSamples, Any]:
    shard: Any = Shard({str(number): one for number, one in enumerate(samples) if one})
    return OldSamples({number: (shard, str(number)) for number in reversed(range(len(samples)))}, label=1), shard


def test_samples_come_in_order_from_a_segment_on_and_each_is_read_once():
    old, shard = old_of(sample(last=False), None, sample(label=2), sample())
    assert [number for number, _ in old.samples(0)] == [0, 3]  # one is unreadable, one has another label
    assert [number for number, _ in old.samples(1)] == [3]
    assert [number for number, _ in old.samples(3)] == [3]
    shard.read_keys.clear()
    assert old.read(0) is old.read(0)
    assert old.read(9) is None
    assert shard.read_keys == ["0"]


@pytest.mark.parametrize(
    ("samples", "sound"),
    [
        ((sample(last=False), sample()), True),
        ((sample(last=False), sample(packets=1)), False),
        ((sample(last=False, intact=False), sample()), False),
        ((sample(packets=1, last=False), sample()), False),
        ((sample(last=False), sample(last=False)), False),
        ((sample(last=False), None, sample()), False),
        ((), False),
    ],
)
def test_a_video_is_sound_if_all_of_it_is_intact(samples: tuple[StoredSample | None, ...], sound: bool):
    assert old_of(*samples)[0].is_sound is sound


def test_a_shard_of_an_unknown_place_is_not_touched():
    assert OldSamples({}, 0).read(0) is None
    assert list(OldSamples({}, 0).samples(0)) == []
