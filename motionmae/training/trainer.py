"""The training loop, and what it does at its steps: take one, record it, save."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor

from motionmae.checkpointing import sharded
from motionmae.checkpointing.async_checkpointer import AsyncCheckpointer, SaveResult
from motionmae.config import Config
from motionmae.data.device_prefetch import DevicePrefetcher
from motionmae.data.loader import Batch, ClipLoader
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.stop_requests import Request, StopRequests
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.errors import UserError
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog, Kind, Row, process_age
from motionmae.runs.phases import Phase
from motionmae.training import nonfinite
from motionmae.training.callbacks.progress import ProgressLine
from motionmae.training.callbacks.reconstructions import ReconstructionCallback
from motionmae.training.nonfinite import SkippedStep, may_roll_back
from motionmae.training.state import TrainState, seed_step
from motionmae.training.step_timer import StepTimer
from motionmae.training.task import Task

SLOW_DISK_SECONDS = 10.0
"""Waiting longer than this for the write before a save is worth a sentence."""


@dataclass
class Run:
    """Everything a training loop works with."""

    config: Config
    task: Task
    rank: DistributedContext
    engine: Engine
    loader: ClipLoader
    schedule: CosineLRScheduler
    requests: StopRequests
    store: CheckpointStore
    saver: AsyncCheckpointer
    watchdog: Watchdog
    events: EventLog
    progress: ProgressLine
    drawing: ReconstructionCallback
    state: TrainState
    total_steps: int
    clock: StepTimer = field(init=False)
    upload: DevicePrefetcher = field(init=False)
    failed_saves: int = 0
    """Saves since the last one that worked."""

    def __post_init__(self) -> None:
        self.clock = StepTimer.of(self.rank.device)
        self.upload = DevicePrefetcher(self.rank.device)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches from the present step on, on the device."""
        return self.upload(self.loader.batches(self.state.data_step))

    @property
    def done(self) -> bool:
        """Whether the last step is taken."""
        return self.state.step >= self.total_steps

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now."""
        return self.state.step % every == 0 or self.done


@dataclass(frozen=True)
class Step:
    """One optimiser step as this rank saw it."""

    losses: Tensor
    """The task's losses, means over the micro-batches; the first is the one minimised."""
    applied: bool
    """False: skipped on all ranks, loss or gradient was not finite."""
    samples: list[Tensor]
    """(b,) sample ids of each micro-batch."""


def train(run: Run) -> EndReason:
    """Take the steps that are left, saving every so often, when asked to stop, and at the end.

    Checkpoints are written while the next steps are taken; the last one, before the run ends or stops, is waited for.

    Raises:
        UserError: if too many steps had to be skipped or samples replaced, or the last save failed.
    """
    batches = run.batches()
    request, started = Request(None, save=False), False
    while not run.done and not request.end:
        step = advance(run, batches)
        request = run.requests.sync_across_ranks()
        run.clock.end_step()

        log_saved(run, run.saver.poll())
        if not started:
            seconds = {"seconds": run.clock.slowest_step, "since_process_start": process_age()}
            run.events.event(Kind.FIRST_STEP, run.state.step, **seconds)
            started = True
        if bad := None if step.applied else explain_skip(run, step):
            with run.watchdog.during("going back", run.config.watchdog.startup_seconds):
                batches = rollback(run, bad, request)
            continue
        if run.due(run.config.log.every_steps) or request.end:
            record(run, step)
        if run.due(run.config.checkpoint.every_steps) or request.end or request.save:
            with run.watchdog.during(f"saving step {run.state.step}", run.config.watchdog.save_seconds):
                save(run, request)
    return EndReason.FINISHED if run.done or not request.end else request.end


def advance(run: Run, batches: Iterator[Batch]) -> Step:
    """Take the next step and count it."""
    run.clock.begin_step()
    run.watchdog.step(run.state.step + 1)
    run.schedule.step_update(run.state.step)
    seed_step(run.config.seed, run.state.step, run.rank.rank)
    step = take_step(run, batches)
    run.state.step += 1
    run.state.data_step += 1
    return step


def take_step(run: Run, batches: Iterator[Batch]) -> Step:
    """Forward and backward over the micro-batches of a step, then the update."""
    engine, device, clock = run.engine, run.rank.device, run.clock
    losses = torch.zeros(len(run.task.losses), device=device)
    samples = []
    applied = True
    for _ in range(engine.accumulation):
        clock.enter(Phase.DATA_WAIT)
        batch = next(batches)
        clock.enter(Phase.FORWARD)
        result = run.task.forward(engine, batch)
        clock.enter(Phase.BACKWARD)
        engine.backward(result[0])
        losses += torch.stack([loss.detach().float() for loss in result]) / engine.accumulation
        samples.append(batch.samples)
        clock.enter(Phase.OPTIMIZER)
        applied = engine.step()
        del batch  # or the loader could not use its memory while it is asked for the next
    clock.enter(Phase.OTHER)
    return Step(losses, applied, samples)


def explain_skip(run: Run, step: Step) -> SkippedStep | None:
    """Say why a step was skipped and count it. Returns it if it was one too many. Collective."""
    bad = nonfinite.examine(run.engine, step.losses, step.samples)
    run.events.event(Kind.NONFINITE, run.state.step, data_step=run.state.data_step, **asdict(bad))
    if bad.cause != "overflow":
        run.progress.say(f"step {run.state.step} skipped: its {bad.cause} is not finite")
    return bad if nonfinite.count(run.state, bad) else None


def rollback(run: Run, bad: SkippedStep, request: Request) -> Iterator[Batch]:
    """Return to the checkpoint before the bad steps (or the oldest), and go on with the samples after. Collective.

    The new state is saved at once, so that a run killed after this does not go through the bad steps again.

    Raises:
        UserError: if the run has no such checkpoint or has gone back lately.
    """
    log_saved(run, run.saver.wait())
    first, now = run.state.recently_skipped[0], run.state
    found = None
    if may_roll_back(now):
        found = sharded.find_newest(run.store, run.rank, log_damaged(run.events, run.progress), before=first)
    if found is None:
        error = nonfinite.give_up(now, bad)
        error.already_reported = not run.rank.is_rank_zero
        raise error
    sharded.restore(run.engine, run.rank, found)
    run.state = TrainState(
        step=found.step,
        data_step=now.data_step,
        skipped=now.skipped,
        rollbacks=[*now.rollbacks, now.data_step],
        corrupt=now.corrupt,
    )
    run.clock.take()
    run.events.event(Kind.ROLLBACK, found.step, from_step=now.step, data_step=now.data_step, path=found.folder.name)
    run.progress.say(
        f"back from step {now.step} to {found.folder.name} after {len(now.recently_skipped)} skipped steps; "
        "the samples in between are passed over"
    )
    save(run, request)
    return run.batches()


def log_damaged(events: EventLog, progress: ProgressLine) -> Callable[[Path, str], None]:
    """Return what records a damaged checkpoint as an event and in the log."""

    def log(folder: Path, reason: str) -> None:
        events.event(Kind.CHECKPOINT_DAMAGED, events.last_step, path=folder.name, reason=reason)
        progress.say(f"checkpoint {folder.name} is damaged ({reason}): trying the one before")

    return log


def record(run: Run, step: Step) -> None:
    """Write a metrics row about ``step`` and show it. Collective."""
    count_corrupt(run)
    spent = times_of(run)
    shared = torch.zeros(len(step.losses) + run.rank.world, device=run.rank.device)  # one message for both
    shared[: len(step.losses)] = step.losses
    shared[len(step.losses) + run.rank.rank] = spent["data_wait_seconds"] + spent["forward_seconds"]
    dist.all_reduce(shared)
    losses, own_seconds = shared.split([len(step.losses), run.rank.world])
    row = metrics_row(run, (losses / run.rank.world).tolist()) | spent | straggling(own_seconds, run.rank.rank)
    run.events.metrics(row)
    run.progress.show(row)
    gc.collect()  # on all ranks now: see motionmae.training.callbacks.gc
    log_reconstruction(run)


def metrics_row(run: Run, losses: list[float]) -> Row:
    """What a row of ``metrics.jsonl`` holds besides times: loss and gradient norm of this very step, counts so far."""
    return {
        "step": run.state.step,
        "data_step": run.state.data_step,
        "epoch": run.state.data_step / run.loader.steps_per_epoch,
        **dict(zip(run.task.losses, losses, strict=True)),
        "lr": run.engine.learning_rate,
        "grad_norm": run.engine.grad_norm,
        "skipped_steps": run.state.skipped,
        "corrupt_samples": len(run.state.corrupt),
        "loader_ready": run.loader.ready,
    }


def times_of(run: Run) -> Row:
    """Seconds of a step on this rank, means over the steps since the last row; saves are not counted as steps."""
    steps, slowest = run.clock.steps, run.clock.slowest_step
    spent = {phase: seconds / steps for phase, seconds in run.clock.take().items()}
    seconds = sum(spent.values()) - spent[Phase.CHECKPOINT]
    return {
        "steps": steps,
        "clips_per_second": run.config.optim.global_batch_size * run.config.data.repeated_sampling / seconds,
        "step_seconds": seconds,
        "step_seconds_max": slowest,
        **{f"{phase.value}_seconds": share for phase, share in spent.items()},
    }


def straggling(own_seconds: Tensor, rank: int) -> Row:
    """Who holds up the others. In the rest of a step ranks wait for each other, so only their own time can tell.

    Args:
        own_seconds: (world,) seconds of a step until the end of the forward pass.
        rank: of this process.
    """
    scores = own_seconds / own_seconds.median().clamp(min=1e-9)
    slowest = int(scores.argmax())
    return {"straggler_score": float(scores[rank]), "slowest_rank": slowest, "slowest_score": float(scores[slowest])}


def count_corrupt(run: Run) -> None:
    """Enter the samples that any rank could not read into the state, and announce new ones. Collective.

    Raises:
        UserError: if there are more than ``data.max_corrupt_samples`` (a loader alone knows of its own only).
    """
    new: dict[str, str] = {}
    for found in gather_objects(dict(run.loader.corrupt_samples)):
        new.update({str(sample): reason for sample, reason in found.items() if str(sample) not in run.state.corrupt})
    if not new:
        return
    run.state.corrupt.update(new)
    total, budget = len(run.state.corrupt), run.config.data.max_corrupt_samples
    reasons = dict(Counter(run.state.corrupt.values()))
    run.events.event(Kind.CORRUPT_SAMPLE, run.state.step, samples=new, total=total, reasons=reasons)
    run.progress.say(f"{total} samples could not be read so far and were replaced by others ({reasons})")
    if total > budget:
        raise UserError(
            f"{total} samples of {run.config.data.shards} cannot be read ({reasons}), more than "
            f"data.max_corrupt_samples={budget}: restore the shards or raise the budget",
            already_reported=not run.rank.is_rank_zero,
        )


def save(run: Run, request: Request) -> None:
    """Begin a checkpoint, and see it through where it is the last one. Collective.

    Raises:
        UserError: if it was the run's last save and failed.
    """
    start = time.perf_counter()
    run.clock.enter(Phase.CHECKPOINT)
    if request.end:
        run.events.event(Kind.PREEMPTION, run.state.step, reason=request.end)
    count_corrupt(run)
    log_saved(run, run.saver.wait())  # the one before, where the disk is slower than the steps
    run.saver.start(run.engine, run.state.step, checkpoint_metadata(run), start, waited=time.perf_counter() - start)
    if request.end or run.done:
        saved = run.saver.wait()
        assert saved is not None
        log_saved(run, replace(saved, blocking=saved.seconds))
    run.requests.clear(request)
    run.clock.enter(Phase.OTHER)


def log_saved(run: Run, saved: SaveResult | None) -> None:
    """Record how a save went, if one is over. After one that failed, training goes on.

    Raises:
        UserError: if it was the run's last save that failed.
    """
    if saved is None:
        return
    if saved.checkpoint is None:
        run.failed_saves += 1
        sentence = f"no checkpoint at step {saved.step}, writing it to {run.store.folder} failed ({saved.error})"
        run.events.event(Kind.CHECKPOINT_FAILED, saved.step, error=saved.error, failures=run.failed_saves)
        if saved.step >= run.total_steps:
            raise UserError(
                f"{sentence}: make room and run the same command again, it goes on from the last checkpoint",
                already_reported=not run.rank.is_rank_zero,
            )
        run.progress.say(f"{sentence}; training goes on, {run.failed_saves} saves in a row have failed")
        return
    run.failed_saves = 0
    if saved.waited > SLOW_DISK_SECONDS:
        run.progress.say(
            f"training stood still for {saved.waited:.0f} s until the checkpoint before was written: "
            f"raise checkpoint.every_steps={run.config.checkpoint.every_steps}, or use a faster disk"
        )
    run.events.event(
        Kind.CHECKPOINT,
        saved.step,
        path=saved.checkpoint.folder.name,
        bytes=saved.checkpoint.bytes,
        seconds=saved.seconds,
        blocking=saved.blocking,
        waited=saved.waited,
    )
    run.drawing.checkpoint(saved.step)


def log_reconstruction(run: Run, patience: float = 0.0) -> None:
    """Record a picture that is ready, waiting for one under way for ``patience`` seconds."""
    if (drawn := run.drawing.finished(patience)) is None:
        return
    run.events.event(Kind.PICTURE, **drawn)
    if "error" in drawn:
        run.progress.say(f"no picture of step {drawn['step']}: {drawn['error']}")


def checkpoint_metadata(run: Run) -> dict[str, Any]:
    """The content of a checkpoint's state.json."""
    return {
        "trainer": asdict(run.state),
        "loader": run.loader.state(run.state.data_step),
        "config": run.config.model_dump(mode="json"),
        "task": run.task.state(),
        "writer": {
            "attempt": run.events.attempt,
            "world": run.rank.world,
            "zero_stage": run.engine.stage,
            "precision": run.engine.precision,
            "torch": torch.__version__,
        },
    }
