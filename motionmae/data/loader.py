"""Load micro-batches in an order that depends only on the seed, and copy them to the device.

:mod:`motionmae.data.mixture.order` maps each position of a step to a sample. All random numbers of a clip are keyed by
(seed, epoch, sample, repeat). A position therefore gives the same clip on every machine. With R ranks and micro-batches
of b samples, accumulation step a of rank r reads the positions a * R * b + r * b + [0, b) of its step. The clips of a
step are therefore the same for every number of ranks and decoders, and a resume needs only the number of the step. An
epoch has ``samples // batch`` steps. With one folder of shards, the incomplete last batch is dropped, which omits
different samples in each epoch.
"""

import itertools
import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from motionmae.config import ClipConfig, Config, DataConfig, EngineConfig, OptimConfig
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.data.clip_decoder import ClipRequest
from motionmae.data.free_memory import check_buffers_fit
from motionmae.data.mixture.order import Draw, make_order
from motionmae.data.mixture.sources import Sources
from motionmae.data.open_shards import Prefetchers, check_stored, load_sources, open_decoder
from motionmae.data.rng import mask_seed
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.format import ORDER_VERSION
from motionmae.data.shared_buffers import SharedBuffer, SharedBufferPool
from motionmae.errors import UserError
from motionmae.text import get_logger

logger = get_logger(__name__)


class Batch(NamedTuple):
    """Micro-batch of n = micro_batch_size * repeats clips. The repeats of a sample are adjacent."""

    clips: torch.Tensor
    """uint8 (n, T, H, W, 3), pinned for a GPU. The memory is reused when no tensor refers to the memory."""
    labels: torch.Tensor  # int64 (n,)
    seeds: torch.Tensor  # int64 (n,), seeds of the masks
    samples: torch.Tensor
    """int64 (n,), ids of the samples in the batch. Instead of a corrupt sample, its replacement is named."""
    flow: torch.Tensor | None  # optical flow in pixels, float16 (n, T, H, W, 2), if requested

    def to(self, device: torch.device) -> "Batch":
        """Copy all tensors to ``device`` except the sample ids, which only log messages need."""
        flow = None if self.flow is None else self.flow.to(device, non_blocking=True)
        clips, labels, seeds = (
            tensor.to(device, non_blocking=True) for tensor in (self.clips, self.labels, self.seeds)
        )
        return Batch(clips, labels, seeds, self.samples, flow)


class _Target(NamedTuple):
    """Micro-batch that is being decoded, and its buffers."""

    batch: Batch
    clips: SharedBuffer
    flows: SharedBuffer | None


class _Item(NamedTuple):
    """Sample to decode."""

    row: int  # number of the sample within the micro-batch
    draw: Draw


def stream_identity(sources: Sources, seed: int, batch: int) -> dict[str, Any]:
    """Return the settings that determine the stream of samples, as JSON values."""
    return {
        "order_version": ORDER_VERSION,
        **sources.identity(batch),
        "seed": seed,
        "batch": batch,
        "shuffle_window_shards": sources.data.shuffle_window_shards,
    }


def check_same_stream(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise UserError if a resume from ``state`` (:meth:`ClipLoader.state`) continues another stream of samples."""
    if _without_names(state.get("mixture")) != _without_names(identity.get("mixture")):
        raise UserError(
            f"this run reads {_describe_mixture(state)} and cannot be resumed with {_describe_mixture(identity)}: "
            "restore data.shards, or start a run with another name"
        )
    differing = [
        f"{key} was {state.get(key)} and is {value}"
        for key, value in identity.items()
        if key != "mixture" and state.get(key) != value
    ]
    if differing:
        raise UserError(
            f"this run would continue with another stream of samples ({'; '.join(differing)}): "
            "restore these settings and shards, or start a run with another name"
        )


def _without_names(mixture: Any) -> list[tuple[Any, ...]]:
    rows = mixture if isinstance(mixture, list) else []
    return [(row.get("shards"), row.get("epoch_samples")) for row in rows if isinstance(row, dict)]


def _describe_mixture(state: dict[str, Any]) -> str:
    rows = [row for row in state.get("mixture") or () if isinstance(row, dict)]
    if not rows:
        return f"one folder of {state.get('samples')} samples"
    parts = (f"{row.get('epoch_samples')} samples of {row.get('name')} ({str(row.get('shards'))[:8]})" for row in rows)
    return f"a mixture with {', '.join(parts)} an epoch"


class ClipLoader:
    """Loader of the micro-batches of one rank. Threads or processes decode the next micro-batches ahead.

    Args:
        batch: number of samples per step over all ranks.
        labelled: raise UserError for samples without a class.
        pinned: pin the memory of the micro-batches for copies to a GPU.

    Raises:
        UserError: there are no shards or fewer samples than a batch, the batch is not divisible among the ranks, or the
            shards lack frames or flow that a clip needs.
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
        pinned: bool = False,
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
        self.sources = load_sources(data)
        self.manifest = self.sources.manifest
        check_stored(self.sources, clip, flow)
        if labelled:
            self.sources.check_classes()
        self.steps_per_epoch = steps_per_epoch(step, self.sources.epoch_samples, world)
        self.order = make_order(self.sources, seed=seed, batch=batch, steps_per_epoch=self.steps_per_epoch)
        self.corrupt: Counter[str] = Counter()
        """Number of corrupt samples that this rank found, by :class:`motionmae.data.shards.errors.Reason`."""
        self.corrupt_samples: dict[int, str] = {}  # reason of each corrupt sample, by sample id
        self.ready = 0
        """Number of prefetched micro-batches that were decoded at the last request, at most ``data.prefetch``."""
        self._lock = threading.Lock()
        shape = (micro_batch_size * data.repeated_sampling, clip.frames, clip.size, clip.size)
        bytes_per_pixel = 7 if flow else 3  # RGB, and two float16 of flow
        check_buffers_fit(math.prod(shape) * bytes_per_pixel, data.prefetch)
        self._clips = SharedBufferPool((*shape, 3), np.uint8, pinned)
        self._flows = SharedBufferPool((*shape, 2), np.float16, pinned) if flow else None
        self._decoder = open_decoder(data, clip, self.sources)
        self._pool = ThreadPoolExecutor(self._decoder.threads, "clip-decoder")
        # largest distance between the samples of the slowest and the fastest rank
        in_flight = self.order.drawn(data.prefetch // self.accumulation + 2)
        try:
            self._prefetchers = Prefetchers(self._decoder.reader, data, self.order, rank, in_flight)
        except UserError:  # the cache is too small
            self._decoder.close()
            raise

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Discard prefetched micro-batches and end the threads. May be called more than once."""
        if self._prefetchers:
            self._decoder.close()  # cancels the downloads that the threads wait for
            self._prefetchers.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._decoder.close()

    def state(self, step: int) -> dict[str, Any]:
        """Return the state that a checkpoint after ``step`` training steps stores."""
        return self.identity | {"epoch": step // self.steps_per_epoch, "step": step}

    @property
    def identity(self) -> dict[str, Any]:
        return stream_identity(self.sources, self.seed, self.batch)

    def drawn(self, step: int) -> dict[str, int]:
        """Return the samples that the first ``step`` steps of the run drew from each source, over all ranks."""
        return dict(zip(self.sources.names, self.order.drawn(step), strict=True))

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield micro-batches without end, from ``step`` on, with :attr:`accumulation` micro-batches per step.

        Raises UserError if more samples than ``data.max_corrupt_samples`` are corrupt.
        """
        return self.micro_batches(itertools.count(step * self.accumulation))

    def micro_batches(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """Yield the micro-batches of ascending ``numbers``, counted from the start of the run, as in training."""
        numbers = iter(numbers)
        prefetched = deque(self._submit(number) for number in itertools.islice(numbers, self.data.prefetch))
        try:
            while prefetched:
                self.ready = sum(all(part.done() for part in parts) for _, parts in prefetched)
                batch, parts = prefetched.popleft()
                prefetched.extend(self._submit(number) for number in itertools.islice(numbers, 1))
                for part in parts:
                    part.result()
                yield batch
                del batch, parts  # these references would keep the buffers in use during the wait for the next batch
        finally:
            for _, parts in prefetched:
                for part in parts:
                    part.cancel()

    def _submit(self, number: int) -> tuple[Batch, list[Future[None]]]:
        """Start to decode micro-batch ``number`` of this rank, counted from the start of the run."""
        step, accumulation_step = divmod(number, self.accumulation)
        first = (accumulation_step * self.world + self.rank) * self.micro_batch_size
        if self._prefetchers:
            self._prefetchers.advance_to(self.order.cursors(step, first))
        items = [_Item(row, self.order.draw(step, first + row)) for row in range(self.micro_batch_size)]
        target = self._new_target()
        size = max(1, self.micro_batch_size // self._decoder.threads)
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        return target.batch, [self._pool.submit(self._fill, target, part) for part in parts]

    def _new_target(self) -> _Target:
        clips, flows = self._clips.take(), self._flows.take() if self._flows else None
        labels, seeds, samples = (torch.empty(len(clips.array), dtype=torch.int64) for _ in range(3))
        flow = torch.from_numpy(flows.array) if flows else None
        batch = Batch(torch.from_numpy(clips.array), labels, seeds, samples, flow)
        return _Target(batch, clips, flows)

    def _fill(self, target: _Target, items: list[_Item]) -> None:
        """Decode samples into a micro-batch. A corrupt sample is replaced by the next sample of its shuffle window."""
        first = {item.row: item.draw for item in items}
        while items:
            replacements = []
            for item, fault in zip(items, self._decode(target, items), strict=True):
                if fault is None:
                    continue
                self._count_corrupt(item.draw.sample, fault)
                draw = self.order.next_in_window(item.draw)
                if draw == first[item.row]:
                    raise UserError(
                        f"all samples of a shuffle window in {self.data.sources[draw.source].path} are corrupt: "
                        "run `motionmae shards verify`, and restore the shards that it names"
                    )
                replacements.append(_Item(item.row, draw))
            items = replacements

    def _decode(self, target: _Target, items: list[_Item]) -> list[CorruptSample | None]:
        """Decode all repeats of each sample; return the error of each sample, or None for an intact sample."""
        repeats, batch = self.data.repeated_sampling, target.batch
        requests = [
            ClipRequest(item.row * repeats + repeat, self.seed, item.draw.epoch, item.draw.sample, repeat)
            for item in items
            for repeat in range(repeats)
        ]
        outcomes = self._decoder.decode_into(requests, target.clips, target.flows)
        faults: list[CorruptSample | None] = [None] * len(items)
        for number, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            if isinstance(outcome, CorruptSample):
                faults[number // repeats] = outcome
                continue
            if self.labelled and not 0 <= outcome.label < len(self.manifest.class_names):
                raise UserError(
                    f"{outcome.where} in {self.data.location} has no class (its label is {outcome.label}, the manifest "
                    f"names {len(self.manifest.class_names)} classes): make the shards of a split with labels"
                )
            batch.labels[request.row] = outcome.label
            batch.seeds[request.row] = mask_seed(self.seed, request.epoch, request.sample, request.repeat)
            batch.samples[request.row] = request.sample
        return faults

    def _count_corrupt(self, sample: int, fault: CorruptSample) -> None:
        """Count a corrupt sample, once per run. Raise UserError if there are more than ``data.max_corrupt_samples``."""
        with self._lock:
            if sample not in self.corrupt_samples:
                self.corrupt_samples[sample] = fault.reason.value
                self.corrupt[fault.reason.value] += 1
                logger.warning(
                    "sample %d is corrupt and is replaced by the next sample of its shuffle window: %s", sample, fault
                )
            found = len(self.corrupt_samples)
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.corrupt.items()))
        if found > self.data.max_corrupt_samples:
            raise UserError(
                f"{found} samples of {self.data.location} are corrupt ({reasons}; the last one: {fault}), more than "
                f"data.max_corrupt_samples={self.data.max_corrupt_samples}: restore the shards or increase the limit"
            )


class _Copy(NamedTuple):
    """Copy in progress."""

    original: Batch  # keeps the pinned memory alive: the loader must not reuse the memory before the copy is done
    target: Batch
    done: Any  # event on the copy stream, recorded after the copy


class DevicePrefetcher:
    """Prefetcher that copies each batch on a separate stream while the device computes with the previous batch.

    ``streams`` replaces the module of the device type, such as ``torch.cuda``, in tests.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams: Any = streams or (None if device.type == "cpu" else torch.get_device_module(device))
        self._copy_stream: Any = self._streams.Stream() if self._streams else None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches on the device. If the device is the CPU, yield them without a copy."""
        return batches if self._streams is None else self._prefetch(batches)

    def _prefetch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            copy = self._start_copy(next(batches))
            while True:
                next_copy = self._start_copy(next(batches))
                yield self._wait_on_device(copy)
                copy.done.synchronize()  # hardly ever waits, because the copy started one batch ago
                copy = next_copy
        finally:
            self._copy_stream.synchronize()  # afterwards the loader may reuse the memory of unused batches

    def _start_copy(self, batch: Batch) -> _Copy:
        with self._streams.stream(self._copy_stream):
            target = batch.to(self._device)
            done = self._streams.Event()
            done.record()
        return _Copy(batch, target, done)

    def _wait_on_device(self, copy: _Copy) -> Batch:
        """Make the compute stream wait for the copy, and return the copied batch. The host does not wait."""
        compute_stream = self._streams.current_stream()
        compute_stream.wait_event(copy.done)
        for tensor in (copy.target.clips, copy.target.labels, copy.target.seeds, copy.target.flow):
            if tensor is not None:
                tensor.record_stream(compute_stream)  # the allocator must not reuse memory that this stream still reads
        return copy.target
