"""Clips for training: threads or processes decode the next micro-batches, in an order that is a pure function.

Position p of epoch e holds the same sample, cut the same way, on every machine: EpochSampler names it and everything
random is keyed by (seed, epoch, sample, repeat). Step t, rank r and accumulation step a of R ranks and micro-batch b
read the positions t * batch + a * R * b + r * b + [0, b); so the clips of a step are the same for every number of
ranks and decoders, and continuing at a step needs no state but its number. An epoch has ``samples // batch`` steps; the
incomplete last batch is left out (other samples each epoch).
"""

import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from motionmae.config import ClipConfig, Config, DataConfig, EngineConfig, OptimConfig
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.data.clip_decoder import ClipDecoder, ClipRequest, ShardSource
from motionmae.data.decode_workers import WorkerSource
from motionmae.data.ffcv_source import BetonSource
from motionmae.data.remote.shard_prefetch import ShardPrefetcher
from motionmae.data.rng import mask_seed
from motionmae.data.sampler import ORDER_VERSION, EpochSampler
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.manifest import Manifest, check_whole, load_manifest
from motionmae.data.shared_buffers import SharedBufferPool
from motionmae.data.temporal_sampling import check_windows
from motionmae.errors import UserError

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A micro-batch of n = micro_batch_size * repeats clips on the CPU, the repeats of a sample in a row."""

    clips: torch.Tensor
    """uint8 (n, T, H, W, 3), pinned where CUDA is there; its memory is used again when no tensor refers to it."""
    labels: torch.Tensor
    """int64 (n,)."""
    seeds: torch.Tensor
    """int64 (n,) of the masks."""
    samples: torch.Tensor
    """int64 (n,) ids: what was trained on, stand-ins of corrupt samples by their own name."""
    flow: torch.Tensor | None
    """float16 (n, T, H, W, 2) in pixels, where asked for."""

    def to(self, device: torch.device) -> "Batch":
        """The batch with all that a model takes on ``device``; sample ids stay, they are for people."""
        flow = None if self.flow is None else self.flow.to(device, non_blocking=True)
        clips, labels, seeds = (
            tensor.to(device, non_blocking=True) for tensor in (self.clips, self.labels, self.seeds)
        )
        return Batch(clips, labels, seeds, self.samples, flow)


def stream_identity(manifest: Manifest, data: DataConfig, seed: int, batch: int) -> dict[str, Any]:
    """What makes a stream of samples the one it is; JSON."""
    return {
        "order_version": ORDER_VERSION,
        "shards": manifest.fingerprint,
        "samples": manifest.samples,
        "seed": seed,
        "batch": batch,
        "shuffle_window_shards": data.shuffle_window_shards,
    }


def check_same_stream(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse to continue after ``state`` (:meth:`ClipLoader.state`) where the stream would be another one.

    Raises:
        UserError: naming everything that differs.
    """
    differing = [
        f"{key} was {state.get(key)} and is {value}" for key, value in identity.items() if state.get(key) != value
    ]
    if differing:
        raise UserError(
            f"this run goes through another stream of data ({'; '.join(differing)}): "
            "restore these settings and shards, or start a run of another name"
        )


def check_clips_fit(manifest: Manifest, data: DataConfig, clip: ClipConfig, flow: bool) -> None:
    """Refuse shards that do not hold what clips are cut from.

    Raises:
        UserError: a stride, flow, windows long enough or whole videos that they do not hold.
    """
    check_windows(manifest, data.shards, clip)
    if flow and not manifest.encoder.flow_distance:
        raise UserError(f"the shards of {data.shards} hold no optical flow: make them with --flow")
    if flow and data.beton:
        raise UserError(f"data.beton={data.beton} holds no optical flow: leave data.beton empty to read the shards")
    if data.sampling == "segments":
        check_whole(manifest, data.shards, "data.sampling=segments")


class ClipLoader:
    """Endless micro-batches of one rank.

    Args:
        data: shards (or a .beton made from them) and how clips are cut.
        clip: frames, stride, size.
        seed: the run's.
        batch: samples of a step over all ranks.
        micro_batch_size: samples of one item.
        rank: of this process.
        world: number of ranks.
        flow: read stored optical flow too.
        labelled: refuse samples without a class.

    Raises:
        UserError: no shards, fewer samples than a batch, a batch the ranks cannot share evenly, a stride or whole
            videos that the shards do not hold.
    """

    def __init__(
        self,
        data: DataConfig,
        clip: ClipConfig,
        *,
        seed: int,
        batch: int,
        micro_batch_size: int,
        rank: int = 0,
        world: int = 1,
        flow: bool = False,
        labelled: bool = False,
    ):
        assert 0 <= rank < world, (rank, world)
        step = Config(
            data=data,
            optim=OptimConfig(global_batch_size=batch),
            engine=EngineConfig(micro_batch_size=micro_batch_size),
        )
        self.accumulation = accumulation_steps(step, world)
        self.data, self.clip, self.seed, self.batch, self.micro_batch_size = data, clip, seed, batch, micro_batch_size
        self.rank, self.world, self.labelled = rank, world, labelled
        self.manifest = load_manifest(data.shards, data)
        check_clips_fit(self.manifest, data, clip, flow)
        self.steps_per_epoch = steps_per_epoch(step, self.manifest.samples)
        self.corrupt: Counter[str] = Counter()
        """Unreadable samples that this rank met, by :class:`motionmae.data.shards.errors.Reason`."""
        self.corrupt_samples: dict[int, str] = {}
        """The reason of each of them, by its id."""
        self.ready = 0
        """Of the ``data.prefetch`` micro-batches held ahead, those that were complete when one was last asked for."""
        self._lock = threading.Lock()
        shape = (micro_batch_size * data.repeated_sampling, clip.frames, clip.size, clip.size)
        self._clips = SharedBufferPool((*shape, 3), torch.uint8)
        self._flows = SharedBufferPool((*shape, 2), torch.float16) if flow else None
        self._order = self._epoch_order(0)
        self._source = self._open_source()
        self._pool = ThreadPoolExecutor(self._source.threads, "clip-decoder")
        self._ahead = self._look_ahead()

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is prefetched and end the threads; may be called again."""
        if self._ahead:
            self._source.close()  # or threads would wait for transfers to end
            self._ahead.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._source.close()

    def _open_source(self) -> ClipDecoder:
        if self.data.beton:
            return BetonSource(self.data, self.clip, self.manifest)
        if self.data.workers:
            return WorkerSource(self.data, self.clip, self.manifest, self._clips, self._flows)
        return ShardSource(self.data, self.clip, self.manifest)

    def _look_ahead(self) -> ShardPrefetcher | None:
        """What fetches remote shards before their turn; None where all is on this machine."""
        reader = self._source.reader
        if reader is None or reader.cache is None:
            return None
        under_way = (self.data.prefetch // self.accumulation + 2) * self.batch  # between the last rank and the first
        reader.cache.require_room(self.manifest.shards, self.data.shuffle_window_shards, under_way)
        return ShardPrefetcher(reader, self._epoch_order, self.rank)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps to continue after ``step`` steps consumed by the trainer (not: prefetched)."""
        return self.identity | {"epoch": step // self.steps_per_epoch, "step": step}

    @property
    def identity(self) -> dict[str, Any]:
        """See :func:`stream_identity`."""
        return stream_identity(self.manifest, self.data, self.seed, self.batch)

    def batches(self, step: int) -> Iterator[Batch]:
        """Micro-batches from ``step`` on, for ever; the accumulation items of a step follow each other.

        ``data.prefetch`` of them are decoded ahead.

        Raises:
            UserError: more samples than ``data.max_corrupt_samples`` are unreadable.
        """
        numbers = itertools.count(step * self.accumulation)
        ahead = deque(self._submit(number) for number in itertools.islice(numbers, self.data.prefetch))
        try:
            while True:
                batch, clips = ahead.popleft()
                self.ready = sum(all(clip.done() for clip in waiting) for waiting in (clips, *(c for _, c in ahead)))
                ahead.append(self._submit(next(numbers)))
                for clip in clips:
                    clip.result()
                yield batch
                del batch, clips  # or its memory would be held while the next is waited for
        finally:
            for _, clips in ahead:
                for clip in clips:
                    clip.cancel()

    def _epoch_order(self, epoch: int) -> EpochSampler:
        counts = [shard.samples for shard in self.manifest.shards]
        return EpochSampler(counts, self.seed, epoch, self.data.shuffle_window_shards)

    def _submit(self, number: int) -> tuple[Batch, list[Future[None]]]:
        """Give the ``number``-th micro-batch of this rank, counted from step 0, to the threads."""
        step, part = divmod(number, self.accumulation)
        epoch, step = divmod(step, self.steps_per_epoch)
        if self._order.epoch != epoch:
            self._order = self._epoch_order(epoch)
        first = step * self.batch + (part * self.world + self.rank) * self.micro_batch_size
        if self._ahead:
            self._ahead.advance_to(self._order, first)
        positions = np.arange(first, first + self.micro_batch_size)
        clips = self._clips.take()
        n = len(clips)
        labels, seeds, samples = (torch.empty(n, dtype=torch.int64) for _ in range(3))
        batch = Batch(clips, labels, seeds, samples, self._flows.take() if self._flows else None)
        ids = self._order.samples(positions)
        places = list(zip(range(self.micro_batch_size), positions.tolist(), ids.tolist(), strict=True))
        share = max(1, self.micro_batch_size // self._source.threads)
        return batch, [
            self._pool.submit(self._fill, batch, self._order, places[first : first + share])
            for first in range(0, self.micro_batch_size, share)
        ]

    def _fill(self, batch: Batch, order: EpochSampler, places: list[tuple[int, int, int]]) -> None:
        """Fill (place in the micro-batch, position, sample); in place of a corrupt one, the next of its window."""
        first = {place: position for place, position, _ in places}
        while places:
            replaced = []
            faults = self._fill_samples(batch, order.epoch, [(place, sample) for place, _, sample in places])
            for (place, position, sample), fault in zip(places, faults, strict=True):
                if fault is None:
                    continue
                self._count(sample, fault)
                position = order.following(position)
                if position == first[place]:
                    raise UserError(
                        f"every sample of a window of shards in {self.data.shards} is unreadable: restore them"
                    )
                replaced.append((place, position, order.sample(position)))
            places = replaced

    def _fill_samples(self, batch: Batch, epoch: int, samples: list[tuple[int, int]]) -> list[CorruptSample | None]:
        """Fill the repeats of each (place, sample); what is wrong with each sample, None for nothing."""
        repeats = self.data.repeated_sampling
        wanted = [
            ClipRequest(place * repeats + repeat, self.seed, epoch, sample, repeat)
            for place, sample in samples
            for repeat in range(repeats)
        ]
        outcomes = self._source.decode_into(
            wanted, batch.clips.numpy(), None if batch.flow is None else batch.flow.numpy()
        )
        faults: list[CorruptSample | None] = [None] * len(samples)
        for number, (one, outcome) in enumerate(zip(wanted, outcomes, strict=True)):
            if isinstance(outcome, CorruptSample):
                faults[number // repeats] = outcome
                continue
            if self.labelled and not 0 <= outcome.label < len(self.manifest.class_names):
                raise UserError(
                    f"{outcome.where} in {self.data.shards} has no class (its label is {outcome.label}, the manifest "
                    f"names {len(self.manifest.class_names)} classes): make the shards of a split with labels"
                )
            batch.labels[one.row] = outcome.label
            batch.seeds[one.row] = mask_seed(self.seed, epoch, one.sample, one.repeat)
            batch.samples[one.row] = one.sample
        return faults

    def _count(self, sample: int, fault: CorruptSample) -> None:
        """Note an unreadable sample, once a run.

        Raises:
            UserError: the budget is spent.
        """
        with self._lock:
            if sample not in self.corrupt_samples:
                self.corrupt_samples[sample] = fault.reason.value
                self.corrupt[fault.reason.value] += 1
                logger.warning("sample %d cannot be read, the next of its window takes its place: %s", sample, fault)
            found = len(self.corrupt_samples)
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.corrupt.items()))
        if found > self.data.max_corrupt_samples:
            raise UserError(
                f"{found} samples of {self.data.shards} cannot be read ({reasons}; this one: {fault}), more than "
                f"data.max_corrupt_samples={self.data.max_corrupt_samples}: restore the shards or raise the budget"
            )
