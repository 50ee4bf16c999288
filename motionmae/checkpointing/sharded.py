"""Sharded checkpoints for any world size and ZeRO stage: every parameter and both AdamW moments in full.

All ranks share the work. A rank that holds a parameter in full copies the parameter to host memory and writes the copy;
where ZeRO has split a parameter over the ranks, one rank gathers and writes it. On resume, rank ``i % world`` of the
new world reads and broadcasts parameter i.

Saving has two parts. :func:`stage` copies from the device and blocks training. :func:`write` needs only the copy and
runs in the background (:mod:`motionmae.checkpointing.async_checkpointer`). At stage 3, which splits every parameter,
:func:`stage` copies fragments and :func:`write` joins them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from motionmae.checkpointing.load_weights import read_tensors
from motionmae.distributed.context import DistributedContext, gather_objects, run_on_rank_zero
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine
from motionmae.engine.precision import LossScale
from motionmae.engine.sharded_state import KINDS, MOMENTS
from motionmae.errors import UserError
from motionmae.json_text import JsonModel
from motionmae.runs.checkpoint_manifest import Checkpoint, Count, FileEntry, describe
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.lease import Lease

Result = TypeVar("Result")


class CheckpointError(Exception):
    """Failure to write a checkpoint, raised on every rank after the partial checkpoint was removed."""


@dataclass(frozen=True)
class StagedState:
    """Part of a checkpoint that this rank writes, copied to host memory."""

    step: int
    state: dict[str, Any]  # content of state.json; only rank 0 writes it
    tensors: dict[str, dict[str, Tensor]]  # parameters written by this rank: {parameter name: {kind: tensor}}
    fragments: "list[_Fragment]"  # fragments to be gathered, of the same parameters in the same order on every rank


class _Fragment(NamedTuple):
    name: str
    kind: str
    value: Tensor
    shape: torch.Size  # shape of the whole tensor
    writer: int  # rank that writes the whole tensor


class _OptimizerState(JsonModel):
    steps: Count
    loss_scale: LossScale | None


class _SavedOptimizer(JsonModel, extra="ignore"):
    optimizer: _OptimizerState


class PinnedStagingBuffer:
    """Host memory for a rank's part of a checkpoint, reused by every save; a GPU copies directly to pinned memory.

    torch rounds each pinned tensor up to a power of two. The copies therefore share blocks of such a size.
    """

    def __init__(self, pinned: bool = False, block_bytes: int = 64 << 20) -> None:
        self.writers: list[_Writer] = []  # of each parameter, in the engine's order; assigned by the first save
        self._pinned, self._block_bytes = pinned, block_bytes
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._rests: list[Tensor] = []  # free end of each block

    def copy(self, key: tuple[str, str], value: Tensor) -> Tensor:
        """Copy ``value``. A copy from a GPU runs in the background until :meth:`wait`."""
        host = self._copies.get(key)
        if host is None:
            host = self._copies[key] = self._take(value.nbytes).view(value.dtype).view(value.shape)
        host.copy_(value, non_blocking=True)
        return host

    def wait(self) -> None:
        if self._pinned:
            torch.cuda.synchronize()

    def _take(self, size: int) -> Tensor:
        """Return ``size`` bytes of host memory, at an address that is a multiple of 64."""
        if size > self._block_bytes:
            return self._allocate(size)
        aligned = -(-size // 64) * 64
        fitting = (number for number, rest in enumerate(self._rests) if rest.nbytes >= aligned)
        if (number := next(fitting, None)) is None:
            number = len(self._rests)
            self._rests.append(self._allocate(self._block_bytes))
        taken, self._rests[number] = self._rests[number][:size], self._rests[number][aligned:]
        return taken

    def _allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


class _Writer(NamedTuple):
    """Rank that writes a parameter and its moments."""

    rank: int
    whole: bool  # whether the writer holds parameter and moments in full; else it gathers them from all ranks


def stage(
    engine: Engine, rank: DistributedContext, step: int, state: dict[str, Any], buffer: PinnedStagingBuffer
) -> StagedState:
    """Copy to ``buffer`` the weights and moments that this rank will write, over the old content.

    All ranks must call this.
    """
    buffer.writers = buffer.writers or _assign_writers(engine, rank)
    tensors: dict[str, dict[str, Tensor]] = {}
    fragments = []
    for (name, parameter), (writer, whole) in zip(engine.parameters.items(), buffer.writers, strict=True):
        if engine.stage == 3:
            for kind in KINDS:
                copy = buffer.copy((name, kind), sharded_state.read_fragment(parameter, kind).detach().flatten())
                fragments.append(_Fragment(name, kind, copy, sharded_state.shape(parameter), writer))
            continue
        if whole and writer != rank.rank:
            continue
        for kind in KINDS:
            value = (sharded_state.read_here if whole else sharded_state.read)(engine, parameter, kind)
            if writer == rank.rank:
                tensors.setdefault(name, {})[kind] = buffer.copy((name, kind), value.detach())
        if writer == rank.rank and name in engine.averages:
            tensors[name]["average"] = buffer.copy((name, "average"), engine.averages[name].detach())
    buffer.wait()
    optimizer = {
        "steps": sharded_state.optimizer_steps(engine),
        "loss_scale": asdict(engine.loss_scale) if engine.loss_scale else None,
    }
    return StagedState(step, {**state, "optimizer": optimizer}, tensors, fragments)


def _assign_writers(engine: Engine, rank: DistributedContext) -> list[_Writer]:
    """Assign each parameter to a rank that holds the parameter in full, or to any rank if none does.

    All ranks must call this.
    """
    held = gather_objects([sharded_state.is_whole_here(engine, parameter) for parameter in engine.parameters.values()])
    writers = []
    for index, holds in enumerate(zip(*held, strict=True)):
        holders = [number for number, whole in enumerate(holds) if whole]
        candidates = holders or range(rank.world)
        writers.append(_Writer(candidates[index % len(candidates)], bool(holders)))
    return writers


def write(
    staged: StagedState,
    store: CheckpointStore,
    rank: DistributedContext,
    lease: Lease | None = None,
    group: dist.ProcessGroup | None = None,
) -> Checkpoint:
    """Write and commit a staged checkpoint. All ranks must call this.

    Args:
        lease: checked before every write and before the commit.
        group: CPU group of the collectives; by default, training's group.

    Raises:
        CheckpointError: on every rank, a rank failed to write (e.g. a full disk). The store is unchanged.
        LeaseLost: on every rank, a newer attempt holds the lease on the run folder.
    """
    io = _CollectiveIO(rank, lease, group)
    attempt = lease.attempt.number if lease else 0
    try:
        folder = io.on_rank_zero(lambda: store.begin(staged.step, attempt))
        tensors = gather_shards(staged, rank, group)
        shares = io.on_all_ranks(lambda: write_share(tensors, folder, rank))
        files = [entry for share in shares for entry in share]
        return io.on_rank_zero(lambda: store.commit(folder, staged.step, staged.state, files))
    except CheckpointError:
        if rank.is_rank_zero:
            store.discard_unfinished(attempt)
        raise


def find_newest(
    store: CheckpointStore,
    rank: DistributedContext,
    log_damaged: Callable[[Path, str], None],
    before: int | None = None,
) -> Checkpoint | None:
    """Return :meth:`CheckpointStore.newest_valid` on every rank, or raise its UserError on every rank.

    All ranks must call this.

    Rank 0 calls ``log_damaged(folder, reason)`` for each damaged checkpoint and removes unfinished checkpoints. No
    write may be in progress.
    """

    def newest() -> Checkpoint | None:
        store.discard_unfinished()
        return store.newest_valid(log_damaged, before)

    return run_on_rank_zero(rank, newest)


def restore(engine: Engine, rank: DistributedContext, checkpoint: Checkpoint) -> None:
    """Load weights, moments, and step count from a checkpoint of any world size and ZeRO stage.

    All ranks must call this.

    Raises:
        UserError: on every rank, the checkpoint belongs to a different model.
    """
    weights = [entry for entry in checkpoint.files if entry.name.startswith("model-")]
    files = {name: entry.name for entry in weights for name in entry.tensors}
    if differing := sorted(set(files) ^ set(engine.parameters)):
        raise UserError(
            f"{checkpoint.folder} does not match the model, {len(differing)} parameters differ (for example "
            f"{', '.join(differing[:3])}): resume with the model.* settings of the checkpoint",
            already_reported=not rank.is_rank_zero,
        )
    for index, (name, parameter) in enumerate(engine.parameters.items()):
        reader, shape = checkpoint.reader(index, files[name], rank.world), sharded_state.shape(parameter)
        kinds = (*KINDS, "average") if name in engine.averages else KINDS
        own = _read_parameter(checkpoint, files[name], name, kinds) if rank.rank == reader else {}
        values = {}
        for kind in kinds:
            values[kind] = own[kind].to(rank.device) if own else torch.empty(shape, device=rank.device)
            dist.broadcast(values[kind], src=reader)
        sharded_state.set_full_state(engine, parameter, values)
        if name in engine.averages:
            engine.averages[name].data.copy_(values["average"])
    optimizer = checkpoint.state(_SavedOptimizer).optimizer
    sharded_state.set_optimizer_steps(engine, optimizer.steps)
    if engine.loss_scale and optimizer.loss_scale:
        engine.loss_scale = optimizer.loss_scale
        engine.set_loss_scale()


def gather_shards(
    staged: StagedState, rank: DistributedContext, group: dist.ProcessGroup | None
) -> dict[str, dict[str, Tensor]]:
    """Return all tensors that this rank writes; gather tensors that are split over the ranks.

    All ranks must call this.
    """
    tensors = dict(staged.tensors)
    for name, kind, value, shape, writer in staged.fragments:
        parts = [torch.empty_like(value) for _ in range(rank.world)] if rank.rank == writer else None
        dist.gather(value, parts, dst=writer, group=group)
        if parts:
            tensors.setdefault(name, {})[kind] = torch.cat(parts)[: shape.numel()].view(shape)  # without padding
    return tensors


def write_share(tensors: dict[str, dict[str, Tensor]], folder: Path, rank: DistributedContext) -> list[FileEntry]:
    """Write the files of this rank's part of a checkpoint, or raise an OSError."""
    names = tuple(tensors)
    suffix = f"{rank.rank:05d}-of-{rank.world:05d}.safetensors"
    contents = {
        f"model-{suffix}": {name: kinds["parameter"] for name, kinds in tensors.items()},
        f"optimizer-{suffix}": {f"{name}.{kind}": kinds[kind] for name, kinds in tensors.items() for kind in MOMENTS},
    }
    if averages := {name: kinds["average"] for name, kinds in tensors.items() if "average" in kinds}:
        contents[f"average-{suffix}"] = averages
    return [write_tensors(folder / file_name, content, names) for file_name, content in contents.items()]


def write_state(path: Path, state: dict[str, Any]) -> FileEntry:
    """Write state.json without a flush, or raise an OSError."""
    path.write_text(json.dumps(state, indent=1))
    return describe(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], parameters: tuple[str, ...]) -> FileEntry:
    """Write and flush contiguous fp32 CPU tensors, or raise an OSError; the returned entry lists ``parameters``.

    ``save_file`` of the safetensors library copies all tensors and holds the interpreter's lock while it writes, which
    stops training. Here nothing is copied, and every long call releases the lock.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _chunks(tensors):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return FileEntry(path.name, file.tell(), digest.hexdigest(), parameters)


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the parts of a safetensors file in order: length of the header, header, and each tensor.

    The format: https://huggingface.co/docs/safetensors
    """
    entries, end = {}, 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, (name, tensor.dtype)
        assert tensor.is_contiguous(), name
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors.values():
        content = tensor.view(-1).numpy().data.cast("B")
        for start in range(0, len(content), 8 << 20):
            yield content[start : start + (8 << 20)]


def _read_parameter(checkpoint: Checkpoint, file: str, name: str, kinds: Sequence[str]) -> dict[str, Tensor]:
    folder = checkpoint.folder
    moments = read_tensors(folder / file.replace("model-", "optimizer-"), [f"{name}.{kind}" for kind in MOMENTS])
    values = {"parameter": read_tensors(folder / file, [name])[name]}
    values |= {kind: moments[f"{name}.{kind}"] for kind in MOMENTS}
    if "average" in kinds:
        values["average"] = _read_average(checkpoint, file, name)
    return values


def _read_average(checkpoint: Checkpoint, file: str, name: str) -> Tensor:
    """Read a weight's moving average, or the weight itself if the checkpoint has no average."""
    average = file.replace("model-", "average-")
    exists = any(entry.name == average for entry in checkpoint.files)
    return read_tensors(checkpoint.folder / (average if exists else file), [name])[name]


@dataclass(frozen=True)
class _CollectiveIO:
    """File operations under the lease, whose results and errors are shared with all ranks.

    All ranks must call its methods in the same order.
    """

    rank: DistributedContext
    lease: Lease | None
    group: dist.ProcessGroup | None

    def on_all_ranks(self, action: Callable[[], Result] | None) -> list[Result]:
        """Call each rank's ``action`` and return all results; if the action of one rank fails, raise on all ranks."""
        result: Result | None = None
        problem: Exception | None = None
        try:
            if action is not None:
                if self.lease is not None:
                    self.lease.check()
                result = action()
        except (OSError, LeaseLost) as error:
            problem = error
        answers = gather_objects((result, problem), self.group)
        for number, (_, problem) in enumerate(answers):
            if isinstance(problem, LeaseLost):
                raise problem
            if problem:
                raise CheckpointError(f"rank {number}: {problem}")
        return [answer for answer, _ in answers]

    def on_rank_zero(self, action: Callable[[], Result]) -> Result:
        """Call ``action`` on rank 0; return its result, or raise its error, on every rank."""
        return self.on_all_ranks(action if self.rank.is_rank_zero else None)[0]
