"""Checkpoints free of world size and ZeRO stage: every parameter and both its AdamW moments, whole, in safetensors.

All ranks share the work: a parameter is copied to host memory and written by a rank that has it in full or, where ZeRO
has cut it, by one of those that put it together; on resume rank ``i % world`` of the new world reads and broadcasts
parameter i. Saving has two halves: :func:`snapshot` needs the device and holds up training, :func:`write` needs only
the snapshot and runs in the background (:mod:`motionmae.checkpointing.async_checkpointer`). At stage 3, which cuts everything, the
former copies fragments and the latter puts them together.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from motionmae.checkpointing.safetensors_writer import write_tensors
from motionmae.distributed.context import DistributedContext, gather_objects, run_on_rank_zero
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine
from motionmae.engine.precision import LossScale
from motionmae.engine.sharded_state import KINDS, MOMENTS
from motionmae.errors import UserError
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore, FileEntry, damage_of, read_manifest
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.events import EventLog, Kind
from motionmae.runs.lease import Lease
from motionmae.training.callbacks.progress import ProgressLine

Result = TypeVar("Result")


class CheckpointError(Exception):
    """A checkpoint could not be written. Raised on every rank, after what had been written was removed."""


@dataclass(frozen=True)
class StagedState:
    """All that this rank writes, in host memory: training may go on while it is written."""

    step: int
    state: dict[str, Any]
    """Content of state.json; used on rank 0 alone."""
    tensors: dict[str, dict[str, Tensor]]
    """This rank's parameters: {parameter name: {kind: tensor}}."""
    fragments: "list[_Fragment]"
    """This rank's fragments of what has still to be put together, the same parameters in the same order everywhere."""


class _Fragment(NamedTuple):
    """A rank's part of one tensor of a parameter."""

    name: str
    kind: str
    value: Tensor
    """Flat."""
    shape: torch.Size
    """Of the whole."""
    owner: int
    """The rank that writes it."""


class PinnedStagingBuffer:
    """Host copies of a rank's share, in memory that is allocated once and used again for the next snapshot.

    Args:
        pinned: page-locked, so that a GPU copies into it without a detour.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.sources: list[_Source] = []
        """Of each parameter, in the engine's order; found out once."""
        self._pinned = pinned
        self._copies: dict[tuple[str, str], Tensor] = {}

    def copy(self, key: tuple[str, str], value: Tensor) -> Tensor:
        """Copy ``value``; from a GPU in the background, until :meth:`wait`."""
        host = self._copies.get(key)
        if host is None:
            host = self._copies[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=self._pinned)
        host.copy_(value, non_blocking=True)
        return host

    def wait(self) -> None:
        """Wait until every copy is there."""
        if self._pinned:
            torch.cuda.synchronize()


class _Source(NamedTuple):
    """Where a parameter and its moments come from."""

    owner: int
    """The rank that writes them."""
    whole: bool
    """The owner has them in full; else all ranks put them together."""


def snapshot(
    engine: Engine,
    rank: DistributedContext,
    step: int,
    state: dict[str, Any],
    memory: PinnedStagingBuffer | None = None,
) -> StagedState:
    """Copy the weights and moments this rank will write. Collective.

    The copies lie in ``memory``: the next snapshot that uses it overwrites them.
    """
    memory = memory or PinnedStagingBuffer()
    memory.sources = memory.sources or _assign_writers(engine, rank)
    tensors: dict[str, dict[str, Tensor]] = {}
    fragments = []
    for (name, parameter), (owner, whole) in zip(engine.parameters.items(), memory.sources, strict=True):
        if engine.stage == 3:
            for kind in KINDS:
                copy = memory.copy((name, kind), sharded_state.read_fragment(parameter, kind).detach().flatten())
                fragments.append(_Fragment(name, kind, copy, sharded_state.shape(parameter), owner))
            continue
        if whole and owner != rank.rank:
            continue
        for kind in KINDS:
            value = (sharded_state.read_here if whole else sharded_state.read)(engine, parameter, kind)
            if owner == rank.rank:
                tensors.setdefault(name, {})[kind] = memory.copy((name, kind), value.detach())
        if owner == rank.rank and name in engine.averages:
            tensors[name]["average"] = memory.copy((name, "average"), engine.averages[name].detach())
    memory.wait()
    optimizer = {
        "updates": sharded_state.optimizer_steps(engine),
        "loss_scale": asdict(engine.loss_scale) if engine.loss_scale else None,
    }
    return StagedState(step, {**state, "optimizer": optimizer}, tensors, fragments)


def _assign_writers(engine: Engine, rank: DistributedContext) -> list[_Source]:
    """Who writes each parameter: a rank that holds it in full, if there is one. Collective.

    So at stages 0 to 2 nearly nothing travels while training stands still.
    """
    held = gather_objects([sharded_state.is_whole_here(engine, parameter) for parameter in engine.parameters.values()])
    sources = []
    for index, holders in enumerate(zip(*held, strict=True)):
        owners = [number for number, whole in enumerate(holders) if whole]
        sources.append(_Source((owners or range(rank.world))[index % len(owners or holders)], bool(owners)))
    return sources


def write(
    snapshot: StagedState,
    store: CheckpointStore,
    rank: DistributedContext,
    lease: Lease | None = None,
    group: dist.ProcessGroup | None = None,
) -> Checkpoint:
    """Write a snapshot and commit it. Collective.

    Args:
        snapshot: this rank's share.
        store: where it goes.
        rank: this process.
        lease: of the run folder, looked up before writing and before committing.
        group: of the collectives, on the CPU; by default the one of training.

    Raises:
        CheckpointError: on every rank if one of them failed, e.g. because the disk is full; the store is as before.
        LeaseLost: on every rank, if the run folder was claimed by a newer attempt.
    """

    def owned(action: Callable[[], Result]) -> Callable[[], Result]:
        def checked() -> Result:
            if lease is not None:
                lease.check()
            return action()

        return checked

    everyone = _CollectiveIO(rank, group)
    life = lease.attempt.number if lease else 0
    try:
        folder = everyone.first(owned(lambda: store.begin(snapshot.step, life)))
        tensors = _gather_shards(snapshot, rank, group)
        shares = everyone.all(owned(lambda: _write_share(tensors, folder, rank)))
        files = [entry for share in shares for entry in share]
        return everyone.first(owned(lambda: store.commit(folder, snapshot.step, snapshot.state, files)))
    except CheckpointError:
        if rank.is_rank_zero:
            store.discard_unfinished(life)
        raise


def find(
    store: CheckpointStore,
    rank: DistributedContext,
    events: EventLog,
    progress: ProgressLine,
    before: int | None = None,
) -> Checkpoint | None:
    """The newest whole checkpoint, or None; the same on every rank. Collective.

    Rank 0 verifies. ``before``: see :meth:`CheckpointStore.newest_valid`. Damaged ones that are passed over are
    announced. No write may be under way: what is unfinished is removed.

    Raises:
        UserError: on every rank, as :meth:`CheckpointStore.newest_valid` does.
    """

    def announce(damaged: Path, reason: str) -> None:
        events.event(Kind.CHECKPOINT_DAMAGED, events.last_step, path=damaged.name, reason=reason)
        progress.say(f"checkpoint {damaged.name} is damaged ({reason}): trying the one before")

    def newest() -> Checkpoint | None:
        store.discard_unfinished()
        return store.newest_valid(announce, before)

    return run_on_rank_zero(rank, newest)


def restore(engine: Engine, rank: DistributedContext, checkpoint: Checkpoint) -> None:
    """Set weights, moments and step count of ``engine`` from a checkpoint of any world size and stage. Collective.

    Raises:
        UserError: on every rank, if the checkpoint holds another model's parameters.
    """
    weights = [entry for entry in checkpoint.files if entry.name.startswith("model-")]
    homes = {name: entry.name for entry in weights for name in entry.tensors}
    if missing := sorted(set(homes) ^ set(engine.parameters)):
        raise UserError(
            f"{checkpoint.folder} holds another model: {', '.join(missing[:3])} and {max(len(missing) - 3, 0)} more "
            "parameters are in only one of the two",
            already_reported=not rank.is_rank_zero,
        )
    for index, (name, parameter) in enumerate(engine.parameters.items()):
        owner = index % rank.world
        values = _read_parameter(checkpoint.folder, homes[name], name) if rank.rank == owner else {}
        sharded_state.set_full_state(engine, parameter, _broadcast(values, sharded_state.shape(parameter), rank, owner))
        if name in engine.averages:
            engine.averages[name].data.copy_(_read_average(checkpoint, homes[name], name))
    optimizer = checkpoint.state()["optimizer"]
    sharded_state.set_updates(engine, optimizer["updates"])
    if engine.loss_scale and optimizer["loss_scale"]:
        engine.loss_scale = LossScale(**optimizer["loss_scale"])
        engine.set_loss_scale()


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the checkpoint in ``folder``, or their average where one is kept, on the CPU, for evaluation.

    Raises:
        UserError: if the folder is no checkpoint, is damaged or cannot be read.
    """
    try:
        checkpoint = read_manifest(folder)
        reason = damage_of(checkpoint)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}): see to its storage") from error
    if reason or isinstance(checkpoint, str):
        raise UserError(f"{folder} is not a whole checkpoint ({reason}): choose another below {folder.parent}")
    weights: dict[str, Tensor] = {}
    kind = "average-" if any(entry.name.startswith("average-") for entry in checkpoint.files) else "model-"
    for entry in checkpoint.files:
        if entry.name.startswith(kind):
            with safe_open(folder / entry.name, framework="pt") as file:
                weights.update({name: file.get_tensor(name) for name in entry.tensors})
    return weights


def _gather_shards(
    snapshot: StagedState, rank: DistributedContext, group: dist.ProcessGroup | None
) -> dict[str, dict[str, Tensor]]:
    """All tensors that this rank writes, with those that lay in fragments on all ranks. Collective."""
    tensors = dict(snapshot.tensors)
    for name, kind, value, shape, owner in snapshot.fragments:
        parts = [torch.empty_like(value) for _ in range(rank.world)] if rank.rank == owner else None
        dist.gather(value, parts, dst=owner, group=group)
        if parts:
            tensors.setdefault(name, {})[kind] = sharded_state.join(parts, shape)
    return tensors


def _write_share(tensors: dict[str, dict[str, Tensor]], folder: Path, rank: DistributedContext) -> list[FileEntry]:
    names = tuple(tensors)
    suffix = f"{rank.rank:05d}-of-{rank.world:05d}.safetensors"
    contents = {
        f"model-{suffix}": {name: kinds["parameter"] for name, kinds in tensors.items()},
        f"optimizer-{suffix}": {f"{name}.{kind}": kinds[kind] for name, kinds in tensors.items() for kind in MOMENTS},
    }
    if averages := {name: kinds["average"] for name, kinds in tensors.items() if "average" in kinds}:
        contents[f"average-{suffix}"] = averages
    return [write_tensors(folder / file_name, content, names) for file_name, content in contents.items()]


def _read_parameter(folder: Path, home: str, name: str) -> dict[str, Tensor]:
    with safe_open(folder / home, framework="pt") as model:
        values = {"parameter": model.get_tensor(name)}
    with safe_open(folder / home.replace("model-", "optimizer-"), framework="pt") as moments:
        values.update({kind: moments.get_tensor(f"{name}.{kind}") for kind in MOMENTS})
    return values


def _read_average(checkpoint: Checkpoint, home: str, name: str) -> Tensor:
    """A weight's average; where the run that saved kept none, the weight itself."""
    kept = home.replace("model-", "average-")
    known = any(entry.name == kept for entry in checkpoint.files)
    with safe_open(checkpoint.folder / (kept if known else home), framework="pt") as file:
        return file.get_tensor(name)


def _broadcast(values: dict[str, Tensor], shape: torch.Size, rank: DistributedContext, owner: int) -> dict[str, Tensor]:
    """Rank ``owner``'s three tensors on every rank and its device."""
    spread = {}
    for kind in KINDS:
        tensor = values[kind].to(rank.device) if values else torch.empty(shape, device=rank.device)
        dist.broadcast(tensor, src=owner)
        spread[kind] = tensor
    return spread


@dataclass(frozen=True)
class _CollectiveIO:
    """Actions on disk of which all ranks learn how they went. Collective."""

    rank: DistributedContext
    group: dist.ProcessGroup | None

    def all(self, action: Callable[[], Result]) -> list[Result]:
        """Do ``action`` on every rank and return all results; a rank that fails fails all."""
        result: Result | None = None
        problem: Exception | None = None
        try:
            result = action()
        except (OSError, LeaseLost) as error:
            problem = error
        answers = gather_objects((result, problem), self.group)
        problems = [(number, problem) for number, (_, problem) in enumerate(answers) if problem]
        for number, problem in problems:
            if isinstance(problem, LeaseLost):
                raise problem
            raise CheckpointError(f"rank {number}: {problem}")
        return [answer for answer, _ in answers]

    def first(self, action: Callable[[], Result]) -> Result:
        """Do ``action`` on rank 0; its result, or its failure, on every rank."""
        return cast(Result, self.all(lambda: action() if self.rank.is_rank_zero else None)[0])
