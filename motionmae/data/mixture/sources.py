"""Folders of shards of a run with their manifests, and the number of samples that an epoch takes from each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

from motionmae.config import DataConfig
from motionmae.data.shards.manifest import Manifest
from motionmae.errors import UserError


@dataclass(frozen=True)
class Sources:
    """Folders of shards that a run reads: one, or those of a mixture. Sample ids run through them in their order."""

    data: DataConfig
    manifests: tuple[Manifest, ...]
    """Manifests, in the order of ``data.sources``."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.source_names

    @property
    def is_mixture(self) -> bool:
        return len(self.manifests) > 1

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of stored samples of each source."""
        return tuple(manifest.samples for manifest in self.manifests)

    @cached_property
    def first_ids(self) -> tuple[int, ...]:
        """Id of the first sample of each source."""
        return tuple(accumulate(self.sizes[:-1], initial=0))

    @cached_property
    def manifest(self) -> Manifest:
        """Manifest of all samples. A mixture has class names only if its sources have the same ones."""
        first = self.manifests[0]
        if not self.is_mixture:
            return first
        same = all(manifest.class_names == first.class_names for manifest in self.manifests)
        shards = tuple(shard for manifest in self.manifests for shard in manifest.shards)
        names = first.class_names if same else ()
        return replace(first, dataset="mixture", split="", class_names=names, shards=shards)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch, before its incomplete last batch is dropped.

        They are all stored samples, or ``passes`` times the samples of each source. With weights, an epoch is as long
        as all sources together (MosaicML Streaming: epoch_size).
        """
        if not self.data.sources[0].passes:
            return sum(self.sizes)
        return round(sum(self._parts()))

    def epoch_counts(self, batch: int) -> tuple[int, ...]:
        """Return the number of samples of each source in an epoch of whole batches.

        The shares are rounded by largest remainders. Raises UserError if a source gets no sample.
        """
        total = self.epoch_samples // batch * batch
        if not self.is_mixture:
            return (total,)
        counts = largest_remainders(self._parts(), total)
        for source, name, count in zip(self.data.sources, self.names, counts, strict=True):
            if not count:
                key = "passes" if source.passes else "weight"
                raise UserError(
                    f"the source {name} of data.shards gets none of the {total} samples of an epoch: give it a larger "
                    f"{key}, or leave it out"
                )
        return counts

    def describe(self, batch: int) -> str:
        """Return a clause with the samples and the passes of each source in an epoch."""
        counts = zip(self.names, self.epoch_counts(batch), self.sizes, strict=True)
        return ", ".join(f"{name} {count} ({count / size:.2g} passes)" for name, count, size in counts)

    def check_classes(self) -> None:
        """Raise UserError if the sources have different classes, so that a label would mean two things."""
        first = self.manifests[0].class_names
        for name, manifest in zip(self.names, self.manifests, strict=True):
            if manifest.class_names != first:
                raise UserError(
                    f"{self.names[0]} and {name} of data.shards have different classes ({len(first)} and "
                    f"{len(manifest.class_names)}), and labels would mix: mix sources with the same class names in the "
                    "same order"
                )

    def identity(self, batch: int) -> dict[str, Any]:
        """Return what determines the samples of the stream, as JSON values. One folder adds no key for a mixture."""
        identity: dict[str, Any] = {"shards": self.manifest.fingerprint, "samples": self.manifest.samples}
        if self.is_mixture:
            rows = zip(self.names, self.manifests, self.epoch_counts(batch), strict=True)
            identity["mixture"] = [
                {"name": name, "shards": manifest.fingerprint, "epoch_samples": count} for name, manifest, count in rows
            ]
        return identity

    def _parts(self) -> list[Fraction]:
        """Return numbers in proportion to the shares of the sources."""
        sources, exponent = self.data.sources, 1 / self.data.mixture_temperature
        if sources[0].passes:
            return [Fraction(one.passes) * size for one, size in zip(sources, self.sizes, strict=True)]
        if sources[0].weight:
            return [Fraction(one.weight) for one in sources]
        return [Fraction(size) if exponent == 1 else Fraction(size**exponent) for size in self.sizes]


def largest_remainders(parts: Sequence[Fraction], total: int) -> tuple[int, ...]:
    """Divide ``total`` in proportion to ``parts`` into whole numbers with this sum (Hamilton's method)."""
    exact = [part * total / sum(parts) for part in parts]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return tuple(counts)
