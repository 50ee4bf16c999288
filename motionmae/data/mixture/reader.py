"""Reader of the samples of several folders of shards under one numbering."""

from bisect import bisect_right
from collections.abc import Sequence

from motionmae.data.mixture.sources import Sources
from motionmae.data.shards.reader import SampleMeta, ShardReader


class MixtureReader:
    """:class:`motionmae.data.clip_decoder.SampleReader` of a mixture; ``readers`` are those of its sources."""

    def __init__(self, sources: Sources, readers: Sequence[ShardReader]):
        self.manifest, self.readers = sources.manifest, tuple(readers)
        self._first_ids = sources.first_ids

    def _find(self, sample_id: int) -> tuple[ShardReader, int]:
        source = max(0, bisect_right(self._first_ids, sample_id) - 1)
        return self.readers[source], sample_id - self._first_ids[source]

    def read_meta(self, sample_id: int) -> SampleMeta:
        reader, own = self._find(sample_id)
        return reader.read_meta(own)

    def read_frames(self, sample_id: int, frame_indices: Sequence[int]) -> list[memoryview]:
        reader, own = self._find(sample_id)
        return reader.read_frames(own, frame_indices)

    def read_flow(self, sample_id: int, frame_indices: Sequence[int]) -> list[memoryview]:
        reader, own = self._find(sample_id)
        return reader.read_flow(own, frame_indices)

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
