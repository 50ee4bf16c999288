"""One incarnation of a run, from finding its last checkpoint to the end of its work or a signal."""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from motionmae.config import Config, save_config
from motionmae.data.loader import ClipLoader
from motionmae.training import checkpoint, zero_state
from motionmae.training.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.training.distributed import Rank, broadcast_object, distributed, gather_objects, on_first_rank
from motionmae.training.engine import Engine
from motionmae.training.events import EventLog, JsonLines, Kind, Sink, TensorBoard, new_incarnation, process_age
from motionmae.training.loop import Run, train
from motionmae.training.preemption import Outcome, Preemption
from motionmae.training.progress import ProgressLine
from motionmae.training.runfolder import RunFolder
from motionmae.training.schedule import build_schedule
from motionmae.training.state import TrainState, check_same_run
from motionmae.training.task import Task


def train_run(
    config: Config, task: Task, *, preemption: Preemption | None = None, sinks: Iterable[Sink] = ()
) -> Outcome:
    """Train by ``config`` in its run folder from where the folder's newest whole checkpoint left it.

    The process must be one of the run's ranks (alone, under torchrun or under srun), and every rank must call this.
    The same call again resumes; after the last step it says so and does nothing.

    Args:
        config: of the run; what it may change of a run begun: :data:`motionmae.training.state.MAY_CHANGE`.
        task: what is trained.
        preemption: installed signal handlers; by default this call installs its own and puts the former ones back.
        sinks: what hears this rank's events and metrics besides the run folder's files; closed at the end.

    Raises:
        UserError: for what a person can mend: data, settings, launch, a full disk at the end, too many bad steps.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        preemption = preemption or stack.enter_context(Preemption())
        rank = stack.enter_context(distributed(config.engine))
        folder = RunFolder.of(config.runs, config.name)
        on_first_rank(rank, folder.create)
        events = stack.enter_context(recording(folder, rank, sinks))
        loader = stack.enter_context(closing(open_loader(config, task, rank)))
        total_steps = loader.steps_per_epoch * config.optim.epochs
        progress = stack.enter_context(closing(ProgressLine(total_steps, rank.is_first)))
        store = CheckpointStore(folder.checkpoints)

        found = find_checkpoint(store, rank, events, progress)
        state = resume_state(found, config, rank, loader)
        if state.step >= total_steps:
            events.event(Kind.FINISH, state.step)
            progress.say(f"{folder.path} is complete: all of its {total_steps} steps are done")
            return Outcome.FINISHED
        if rank.is_first:
            save_config(config, folder.config)
            if config.log.tensorboard:
                events.add(TensorBoard(folder.tensorboard, state.step))
        engine = build_engine(config, task, rank, loader, found, events)
        stack.callback(engine.close)
        schedule = build_schedule(engine.optimizer, config.optim, loader.steps_per_epoch)
        run = Run(config, task, rank, engine, loader, schedule, preemption, store, events, progress, state, total_steps)
        events.event(Kind.READY, state.step, total_steps=total_steps, seconds=time.perf_counter() - start)
        progress.say(introduction(run, folder))
        outcome = train(run)
        announce_end(run, outcome, folder)
        return outcome


@contextmanager
def recording(folder: RunFolder, rank: Rank, sinks: Iterable[Sink]) -> Iterator[EventLog]:
    """The run's event log, with its start and, should an error end the run, that error in it."""
    events = EventLog(broadcast_object(new_incarnation()), sinks)
    hosts = gather_objects(socket.gethostname())
    if rank.is_first:
        events.add(JsonLines(folder.events, folder.metrics))
    events.event(
        Kind.START,
        0,
        world=rank.world,
        device=str(rank.device),
        host=socket.gethostname(),
        hosts=list(dict.fromkeys(hosts)),
        age=process_age(),
        pid=os.getpid(),
        torch=torch.__version__,
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        slurm_restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )
    try:
        yield events
    except BaseException as error:
        events.event(Kind.STOP, events.last_step, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        events.close()


def open_loader(config: Config, task: Task, rank: Rank) -> ClipLoader:
    """Open the sample stream at this rank's share of it, on rank 0 first: what is wrong is said once. Collective."""
    opened: list[ClipLoader] = []
    on_first_rank(rank, lambda: opened.append(new_loader(config, task, rank)))
    return opened[0] if opened else new_loader(config, task, rank)


def new_loader(config: Config, task: Task, rank: Rank) -> ClipLoader:
    """The loader of ``config`` for this rank."""
    return ClipLoader(
        config.data,
        config.clip,
        seed=config.seed,
        batch=config.optim.batch,
        micro_batch=config.engine.micro_batch,
        rank=rank.rank,
        world=rank.world,
        flow=task.needs_flow,
    )


def find_checkpoint(store: CheckpointStore, rank: Rank, events: EventLog, progress: ProgressLine) -> Checkpoint | None:
    """The newest whole checkpoint, or None for a new run; damaged ones passed over are announced. Collective."""

    def announce(damaged: Path, reason: str) -> None:
        events.event(Kind.CHECKPOINT_DAMAGED, 0, path=damaged.name, reason=reason)
        progress.say(f"checkpoint {damaged.name} is damaged ({reason}): trying the one before")

    return checkpoint.find(store, rank, announce)


def resume_state(found: Checkpoint | None, config: Config, rank: Rank, loader: ClipLoader) -> TrainState:
    """The trainer's state in the checkpoint, after making sure that it is this run's. Collective.

    Raises:
        UserError: if config or data are not those of the checkpoint.
    """
    saved = broadcast_object(found.state() if found and rank.is_first else None)
    if saved is None:
        return TrainState()

    def check() -> None:
        check_same_run(saved["config"], config)
        loader.check_state(saved["loader"])

    on_first_rank(rank, check)  # before the others, so that what is wrong is said once
    check()
    return TrainState(**saved["trainer"])


def build_engine(
    config: Config, task: Task, rank: Rank, loader: ClipLoader, found: Checkpoint | None, events: EventLog
) -> Engine:
    """The model on DeepSpeed, with its initial weights or as the checkpoint has it. Collective."""
    model = task.build_model(loader.manifest, resumed=found is not None)
    engine = Engine(model, task.parameter_groups(model), config, rank)
    if found:
        start = time.perf_counter()
        checkpoint.restore(engine, rank, found)
        events.event(Kind.RESUME, found.step, path=found.folder.name, seconds=time.perf_counter() - start)
    return engine


def introduction(run: Run, folder: RunFolder) -> str:
    """What is about to happen, for the log."""
    config, rank, engine = run.config, run.rank, run.engine
    begins = f"resumes at step {run.state.step}" if run.state.step else "starts"
    millions = sum(zero_state.shape(p).numel() for p in engine.parameters.values()) / 1e6
    return (
        f"{folder.path} {begins}: {run.total_steps} steps of {config.optim.batch} videos, {millions:.1f} M parameters, "
        f"{rank.world} x {rank.device.type}, {engine.accumulation} x {config.engine.micro_batch} videos a rank, "
        f"ZeRO {engine.stage}, {engine.precision}"
    )


def announce_end(run: Run, outcome: Outcome, folder: RunFolder) -> None:
    """Record and say how the incarnation ended."""
    if outcome is Outcome.FINISHED:
        run.events.event(Kind.FINISH, run.state.step)
        newest = run.store.complete()[-1].folder if run.rank.is_first else None
        run.progress.say(f"{folder.path} is complete after {run.state.step} steps; its weights: {newest}")
    else:
        run.events.event(Kind.STOP, run.state.step, outcome=outcome.name)
        run.progress.say(f"stopped by a signal after step {run.state.step}, all saved: the same run goes on from here")
