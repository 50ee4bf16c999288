"""The samples of one video in the shards of an earlier run."""

from collections.abc import Iterator, Mapping, Sequence

from data_tools.decode import DecodedVideo
from motionmae.data.shards.stored_samples import StoredSample, StoredSamples


class OldSamples:
    """Readable samples of one video with an unchanged label, by the number of their segment.

    ``places`` has shard and key of each segment. Samples must be read before their shard is replaced.
    """

    def __init__(self, places: Mapping[int, tuple[StoredSamples, str]], label: int):
        self._places, self._label = places, label
        self._newest: tuple[int, StoredSample | None] = -1, None

    def read(self, segment: int) -> StoredSample | None:
        if self._newest[0] != segment:
            self._newest = segment, self._read(segment)
        return self._newest[1]

    def _read(self, segment: int) -> StoredSample | None:
        if segment not in self._places:
            return None
        shard, key = self._places[segment]
        stored = shard.read(key)
        # otherwise KEY.json has changed, and it has no checksum
        return stored if stored and stored.meta["label"] == self._label else None

    def samples(self, first: int) -> Iterator[tuple[int, StoredSample]]:
        """Yield the samples from segment ``first`` on."""
        for segment in sorted(self._places):
            if segment >= first and (stored := self.read(segment)):
                yield segment, stored

    @property
    def is_sound(self) -> bool:
        """Whether the whole video is stored without any damage."""
        ends, is_intact = [], True
        for segment, stored in self.samples(0):
            ends.append((segment, stored.is_last))
            is_intact = is_intact and stored.intact and not stored.damaged_packets
        return is_intact and reach_end(ends, 0)


def reach_end(segments: Sequence[tuple[int, bool]], first: int) -> bool:
    """Return whether these (number, is the last) are all segments of a video from ``first`` on."""
    complete = [number for number, _ in segments] == [*range(first, first + len(segments))]
    return bool(segments) and complete and segments[-1][1]


def is_better(stored: StoredSample, decoded: DecodedVideo) -> bool:
    """Return whether a stored sample has more of its video than the original gives now."""
    before, now = (stored.source_frames, -stored.damaged_packets), (decoded.source_frames, -decoded.damaged_packets)
    return stored.intact and before > now
