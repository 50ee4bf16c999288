"""The training loop, and what it does at its steps: take one, record it, save."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor

from motionmae.config import Config
from motionmae.data.loader import Batch, ClipLoader
from motionmae.errors import UserError
from motionmae.training import checkpoint, health
from motionmae.training.checkpoint_store import CheckpointStore
from motionmae.training.distributed import Rank, gather_objects
from motionmae.training.engine import Engine
from motionmae.training.events import EventLog, Kind, Row, process_age
from motionmae.training.health import BadStep, may_go_back
from motionmae.training.preemption import Outcome, Request, Requests
from motionmae.training.progress import ProgressLine
from motionmae.training.saver import Saved, Saver
from motionmae.training.state import TrainState, config_as_json, seed_step
from motionmae.training.task import Task
from motionmae.training.watchdog import Watchdog

SLOW_DISK_SECONDS = 10.0
"""Waiting longer than this for the write before a save is worth a sentence."""


@dataclass
class Clock:
    """Seconds of the steps since the last metrics row."""

    steps: int = 0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; the time spent waiting for it is counted."""
        start = time.perf_counter()
        batch = next(batches)
        self.wait_seconds += time.perf_counter() - start
        return batch


@dataclass
class Run:
    """Everything a training loop works with."""

    config: Config
    task: Task
    rank: Rank
    engine: Engine
    loader: ClipLoader
    schedule: CosineLRScheduler
    requests: Requests
    store: CheckpointStore
    saver: Saver
    watchdog: Watchdog
    events: EventLog
    progress: ProgressLine
    state: TrainState
    total_steps: int
    clock: Clock = field(default_factory=Clock)
    failed_saves: int = 0
    """Saves since the last one that worked."""

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


def train(run: Run) -> Outcome:
    """Take the steps that are left, saving every so often, when asked to stop, and at the end.

    Checkpoints are written while the next steps are taken; the last one, before the run ends or stops, is waited for.

    Raises:
        UserError: if too many steps had to be skipped or samples replaced, or the last save failed.
    """
    batches = run.loader.batches(run.state.data_step)
    request, started = Request(None, save=False), False
    while not run.done and not request.end:
        start = time.perf_counter()
        run.watchdog.step(run.state.step + 1)
        run.schedule.step_update(run.state.step)
        seed_step(run.config.seed, run.state.step, run.rank.rank)
        step = take_step(run, batches)
        run.state.step += 1
        run.state.data_step += 1
        request = run.requests.agree()
        run.clock.steps += 1
        run.clock.step_seconds += time.perf_counter() - start

        announce_saved(run, run.saver.finished())
        if not started:
            seconds = {"seconds": run.clock.step_seconds, "since_process_start": process_age()}
            run.events.event(Kind.FIRST_STEP, run.state.step, **seconds)
            started = True
        if bad := None if step.applied else explain_skip(run, step):
            batches = go_back(run, bad, request)
            continue
        if run.due(run.config.log.every_steps) or request.end:
            record(run, step)
        if run.due(run.config.checkpoint.every_steps) or request.end or request.save:
            with run.watchdog.during(f"saving step {run.state.step}", run.config.watchdog.save_seconds):
                save(run, request)
    return Outcome.FINISHED if run.done or not request.end else request.end


def take_step(run: Run, batches: Iterator[Batch]) -> Step:
    """Forward and backward over the micro-batches of a step, then the update."""
    engine, device = run.engine, run.rank.device
    losses = torch.zeros(len(run.task.losses), device=device)
    samples = []
    applied = True
    for _ in range(engine.accumulation):
        batch = run.clock.next_batch(batches).to(device)
        result = run.task.forward(engine, batch)
        engine.backward(result[0])
        losses += torch.stack([loss.detach().float() for loss in result]) / engine.accumulation
        samples.append(batch.samples)
        applied = engine.step()
        del batch  # or the loader could not use its memory while it is asked for the next
    return Step(losses, applied, samples)


def explain_skip(run: Run, step: Step) -> BadStep | None:
    """Say why a step was skipped and count it. Returns it if it was one too many. Collective."""
    bad = health.examine(run.engine, step.losses, step.samples)
    run.events.event(Kind.NONFINITE, run.state.step, data_step=run.state.data_step, **asdict(bad))
    if bad.cause != "overflow":
        run.progress.say(f"step {run.state.step} skipped: its {bad.cause} is not finite")
    return bad if health.count(run.state, bad) else None


def go_back(run: Run, bad: BadStep, request: Request) -> Iterator[Batch]:
    """Return to the checkpoint before the bad steps, and go on with the samples after them. Collective.

    The new state is saved at once, so that a run killed after this does not go through the bad steps again.

    Raises:
        UserError: if the run has no such checkpoint or has gone back lately.
    """
    announce_saved(run, run.saver.wait())
    first, now = run.state.recently_skipped[0], run.state
    found = None
    if may_go_back(now):
        found = checkpoint.find(run.store, run.rank, run.events, run.progress, before=first)
    if found is None:
        error = health.give_up(now, bad)
        error.repeated = not run.rank.is_first
        raise error
    checkpoint.restore(run.engine, run.rank, found)
    run.state = TrainState(
        step=found.step,
        data_step=now.data_step,
        skipped=now.skipped,
        went_back=[*now.went_back, now.data_step],
        corrupt=now.corrupt,
    )
    run.clock = Clock()
    run.events.event(Kind.WENT_BACK, found.step, from_step=now.step, data_step=now.data_step, path=found.folder.name)
    run.progress.say(
        f"back from step {now.step} to {found.folder.name}, saved before the first of {len(now.recently_skipped)} "
        "skipped steps; the samples in between are passed over"
    )
    save(run, request)
    return run.loader.batches(now.data_step)


def record(run: Run, step: Step) -> None:
    """Write a metrics row about ``step`` and show it. Collective."""
    count_corrupt(run)
    losses = step.losses.clone()
    dist.all_reduce(losses)
    row = metrics_row(run, (losses / run.rank.world).tolist())
    run.clock = Clock()
    run.events.metrics(row)
    run.progress.show(row)


def metrics_row(run: Run, losses: list[float]) -> Row:
    """A row of ``metrics.jsonl``: loss and gradient norm of this very step, times averaged since the last row."""
    config, clock = run.config, run.clock
    seconds = clock.step_seconds / clock.steps
    return {
        "step": run.state.step,
        "data_step": run.state.data_step,
        "epoch": run.state.data_step / run.loader.steps_per_epoch,
        **dict(zip(run.task.losses, losses, strict=True)),
        "lr": run.engine.learning_rate,
        "grad_norm": run.engine.grad_norm,
        "clips_per_second": config.optim.batch * config.data.repeats / seconds,
        "step_seconds": seconds,
        "data_wait_seconds": clock.wait_seconds / clock.steps,
        "skipped_steps": run.state.skipped,
        "corrupt_samples": len(run.state.corrupt),
    }


def count_corrupt(run: Run) -> None:
    """Enter the samples that any rank could not read into the state, and announce new ones. Collective.

    Raises:
        UserError: if there are more than ``data.corrupt_budget`` (a loader alone knows of its own only).
    """
    new: dict[str, str] = {}
    for found in gather_objects(dict(run.loader.corrupt_samples)):
        new.update({str(sample): reason for sample, reason in found.items() if str(sample) not in run.state.corrupt})
    if not new:
        return
    run.state.corrupt.update(new)
    total, budget = len(run.state.corrupt), run.config.data.corrupt_budget
    reasons = dict(Counter(run.state.corrupt.values()))
    run.events.event(Kind.CORRUPT_SAMPLE, run.state.step, samples=new, total=total, reasons=reasons)
    run.progress.say(f"{total} samples could not be read so far and were replaced by others ({reasons})")
    if total > budget:
        raise UserError(
            f"{total} samples of {run.config.data.shards} cannot be read ({reasons}), more than "
            f"data.corrupt_budget={budget}: restore the shards or raise the budget",
            repeated=not run.rank.is_first,
        )


def save(run: Run, request: Request) -> None:
    """Begin a checkpoint, and see it through where it is the last one. Collective.

    Raises:
        UserError: if it was the run's last save and failed.
    """
    start = time.perf_counter()
    if request.end:
        run.events.event(Kind.PREEMPTION, run.state.step, outcome=request.end.name)
    count_corrupt(run)
    announce_saved(run, run.saver.wait())  # the one before, where the disk is slower than the steps
    run.saver.start(run.engine, run.state.step, document(run), start, waited=time.perf_counter() - start)
    if request.end or run.done:
        saved = run.saver.wait()
        assert saved is not None
        announce_saved(run, replace(saved, blocking=saved.seconds))
    run.requests.met(request)


def announce_saved(run: Run, saved: Saved | None) -> None:
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
                repeated=not run.rank.is_first,
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


def document(run: Run) -> dict[str, Any]:
    """The content of a checkpoint's state.json."""
    return {
        "trainer": asdict(run.state),
        "loader": run.loader.state(run.state.data_step),
        "config": config_as_json(run.config),
        "task": run.task.state(),
        "writer": {
            "incarnation": run.events.incarnation,
            "world": run.rank.world,
            "zero": run.engine.stage,
            "precision": run.engine.precision,
            "torch": torch.__version__,
        },
    }
