"""One attempt of a run, from finding its last checkpoint to the end of its work or a signal."""

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass

import torch

from motionmae.checkpointing import sharded
from motionmae.checkpointing.async_checkpointer import AsyncCheckpointer
from motionmae.config import Config, save_config
from motionmae.config.resume import check_same_run
from motionmae.data.loader import ClipLoader, check_same_stream
from motionmae.distributed.context import (
    DistributedContext,
    broadcast_object,
    gather_objects,
    rank_zero_first,
    run_on_rank_zero,
)
from motionmae.distributed.process_group import distributed
from motionmae.distributed.stop_requests import Preemption, StopRequests
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine, import_deepspeed
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, classify_error
from motionmae.runs.events import EventLog, JsonLines, Kind, Sink, process_age
from motionmae.runs.git_revision import git_revision
from motionmae.runs.lease import Lease, acquire_lease
from motionmae.training.callbacks.gc import synchronized_gc
from motionmae.training.callbacks.loggers import TensorBoard, WeightsAndBiases
from motionmae.training.callbacks.progress import ProgressLine
from motionmae.training.callbacks.reconstructions import LAST_SECONDS, ReconstructionCallback
from motionmae.training.lr_schedule import build_schedule
from motionmae.training.preconditions import validate_before_start
from motionmae.training.state import TrainState
from motionmae.training.step_timer import StartupTimer
from motionmae.training.task import Task
from motionmae.training.trainer import Run, log_damaged, log_reconstruction, train

logger = logging.getLogger(__name__)


def train_run(
    config: Config, task: Task, *, preemption: Preemption | None = None, sinks: Iterable[Sink] = ()
) -> EndReason:
    """Train by ``config`` in its run folder from where the folder's newest whole checkpoint left it.

    The process must be one of the run's ranks (alone, under torchrun or under srun), and every rank must call this.
    The same call again resumes; after the last step it says so and does nothing.

    Args:
        config: of the run; fields marked MAY_CHANGE may differ from those of a run that is resumed.
        task: what is trained.
        preemption: installed signal handlers; by default this call installs its own and puts the former ones back.
        sinks: what hears this rank's events and metrics besides the run folder's files; closed at the end.

    Raises:
        UserError: for what a person can mend: data, settings, launch, a full disk at the end, too many bad steps.
    """
    with ExitStack() as stack:
        preemption = preemption or stack.enter_context(Preemption())
        start = prepare(config, task, sinks, stack)
        found = sharded.find_newest(start.store, start.rank, log_damaged(start.events, start.progress))
        state = resume_state(found, config, start.rank, start.loader)
        start.startup.done("find_checkpoint")
        if state.step >= start.total_steps:
            start.events.event(Kind.FINISH, state.step)
            start.progress.say(f"{start.folder.path} is complete: all of its {start.total_steps} steps are done")
            return EndReason.FINISHED
        run = build_run(start, found, state, preemption, stack)
        seconds = start.startup.seconds
        run.events.event(Kind.READY, state.step, total_steps=run.total_steps, seconds=process_age(), startup=seconds)
        run.progress.say(startup_message(run, start.folder))
        with synchronized_gc():
            reason = train(run)
        log_end(run, reason, start.folder)
        return reason


@dataclass(frozen=True)
class Start:
    """An attempt before it has a model: the folder is its own, what happens is recorded, and data is at hand."""

    config: Config
    task: Task
    startup: StartupTimer
    rank: DistributedContext
    folder: RunFolder
    store: CheckpointStore
    lease: Lease
    events: EventLog
    watchdog: Watchdog
    loader: ClipLoader
    progress: ProgressLine
    total_steps: int


def prepare(config: Config, task: Task, sinks: Iterable[Sink], stack: ExitStack) -> Start:
    """Join the other ranks, take the run folder over, open the sample stream; ``stack`` undoes it. Collective.

    Raises:
        UserError: settings or data are not those of the run, or no run could be made of them.
    """
    startup = StartupTimer()
    rank = stack.enter_context(distributed(config.engine))
    startup.done("process_group")
    folder = RunFolder.of(config.output_dir, config.name)
    store = CheckpointStore(folder.checkpoints)
    run_on_rank_zero(rank, lambda: validate_before_start(folder, store, config))
    run_on_rank_zero(rank, folder.create)
    lease = run_on_rank_zero(rank, lambda: acquire_lease(folder.path))
    events = stack.enter_context(recording(folder, rank, lease, sinks))
    watchdog = stack.enter_context(closing(watch(config, folder, rank, events)))
    startup.done("run_folder")
    loader = stack.enter_context(closing(open_loader(config, task, rank)))
    total_steps = loader.steps_per_epoch * config.optim.epochs
    progress = stack.enter_context(closing(ProgressLine(total_steps, rank.is_rank_zero)))
    startup.done("data")
    return Start(config, task, startup, rank, folder, store, lease, events, watchdog, loader, progress, total_steps)


def build_run(
    start: Start, found: Checkpoint | None, state: TrainState, preemption: Preemption, stack: ExitStack
) -> Run:
    """The engine with the weights of ``found``, and all that the loop needs; ``stack`` undoes it. Collective."""
    config, rank, events, startup = start.config, start.rank, start.events, start.startup
    if rank.is_rank_zero:
        start.lease.check()
        save_config(config, start.folder.config)
        if found is None:
            start.folder.encoder.unlink(missing_ok=True)  # of a start that came to no checkpoint
    run_on_rank_zero(rank, lambda: add_loggers(events, config, start.folder, state.step))
    import_deepspeed(rank.device)
    startup.done("import_deepspeed")
    engine = build_engine(config, start.task, rank, start.loader, found)
    stack.callback(engine.close)
    startup.done("engine")
    if found:
        sharded.restore(engine, rank, found)
        startup.done("restore")
        seconds = startup.seconds["find_checkpoint"] + startup.seconds["restore"]
        events.event(Kind.RESUME, found.step, path=found.folder.name, seconds=seconds)
    saver = AsyncCheckpointer(start.store, rank, start.lease, config.checkpoint, start.watchdog)
    return Run(
        config=config,
        task=start.task,
        rank=rank,
        engine=engine,
        loader=start.loader,
        schedule=build_schedule(engine.optimizer, config.optim, start.loader.steps_per_epoch),
        requests=StopRequests(preemption, start.folder.path, rank.is_rank_zero),
        store=start.store,
        saver=stack.enter_context(
            closing(AsyncCheckpointer(start.store, rank, start.lease, config.checkpoint, start.watchdog))
        ),
        watchdog=start.watchdog,
        events=events,
        progress=start.progress,
        drawing=stack.enter_context(closing(open_reconstructions(config, start.folder, rank))),
        state=state,
        total_steps=start.total_steps,
    )


@contextmanager
def recording(folder: RunFolder, rank: DistributedContext, lease: Lease, sinks: Iterable[Sink]) -> Iterator[EventLog]:
    """The run's event log, with its start and, should an error end the run, that error in it.

    Raises:
        LeaseLost: in place of any error of a run that was taken over, such as the loss of peers that saw it first.
    """
    attempt = lease.attempt
    check = lease.check if rank.is_rank_zero else None  # the other ranks write no rows there
    events = EventLog(attempt.id, sinks, check)
    hosts = gather_objects(socket.gethostname())
    if rank.is_rank_zero:
        events.add(JsonLines(folder.events, folder.metrics))
    events.event(
        Kind.START,
        0,
        number=attempt.number,
        world=rank.world,
        device=str(rank.device),
        host=socket.gethostname(),
        hosts=list(dict.fromkeys(hosts)),
        age=process_age(),
        pid=os.getpid(),
        torch=torch.__version__,
        code=git_revision() if rank.is_rank_zero else "",  # the only one whose events are kept
        job=attempt.job,
        restart=attempt.restart,
    )
    try:
        yield events
    except BaseException as error:
        with suppress(OSError):
            lease.check()
        text = f"{type(error).__name__}: {error}"
        events.event(Kind.STOP, events.last_step, reason=classify_error(error), error=text)
        raise
    finally:
        events.close()


def add_loggers(events: EventLog, config: Config, folder: RunFolder, resumed_step: int) -> None:
    """Have the run shown wherever the config says.

    Raises:
        UserError: if a package for it is missing.
    """
    if config.log.tensorboard:
        try:
            events.add(TensorBoard(folder, resumed_step))
        except OSError as error:
            logger.warning("nothing is written for TensorBoard (%s); training goes on", error)
    if config.log.wandb != "off":
        events.add(WeightsAndBiases(config, folder))


def open_reconstructions(config: Config, folder: RunFolder, rank: DistributedContext) -> ReconstructionCallback:
    """What draws pictures of this run, on rank 0 and where there are heads to draw."""
    return ReconstructionCallback(
        folder, config.log.reconstruction_every_steps if rank.is_rank_zero and config.task == "pretrain" else 0
    )


def watch(config: Config, folder: RunFolder, rank: DistributedContext, events: EventLog) -> Watchdog:
    """The watchdog of this rank, which begins with the start-up."""
    stacks = folder.logs / f"stacks_{events.attempt}_rank{rank.rank}.txt"

    def announce(sentence: str) -> None:
        events.event(Kind.HANG, events.last_step, error=sentence, stacks=str(stacks))
        events.event(Kind.STOP, events.last_step, reason=EndReason.HUNG, error=sentence)

    watchdog = Watchdog(config.watchdog, stacks, announce)
    watchdog.expect("starting up", config.watchdog.startup_seconds)
    return watchdog


def open_loader(config: Config, task: Task, rank: DistributedContext) -> ClipLoader:
    """Open the sample stream at this rank's share of it. Collective."""
    return rank_zero_first(rank, lambda: new_loader(config, task, rank))


def new_loader(config: Config, task: Task, rank: DistributedContext) -> ClipLoader:
    """The loader of ``config`` for this rank."""
    return ClipLoader(
        config.data,
        config.clip,
        seed=config.seed,
        batch=config.optim.global_batch_size,
        micro_batch_size=config.engine.micro_batch_size,
        rank=rank.rank,
        world=rank.world,
        flow=task.needs_flow,
        labelled=task.needs_labels,
    )


def resume_state(found: Checkpoint | None, config: Config, rank: DistributedContext, loader: ClipLoader) -> TrainState:
    """The trainer's state in the checkpoint, after making sure that it is this run's. Collective.

    Raises:
        UserError: if config or data are not those of the checkpoint.
    """
    saved = broadcast_object(found.state() if found and rank.is_rank_zero else None)
    if saved is None:
        return TrainState()

    def check() -> None:
        check_same_run(saved["config"], config)
        check_same_stream(saved["loader"], loader.identity)

    run_on_rank_zero(rank, check)  # before the others, so that what is wrong is said once
    check()
    return TrainState(**saved["trainer"])


def build_engine(
    config: Config, task: Task, rank: DistributedContext, loader: ClipLoader, found: Checkpoint | None
) -> Engine:
    """The model on DeepSpeed, with its initial weights. Collective."""
    saved = found.state().get("task", {}) if found else None
    task.choose_weights(rank, saved)
    model = rank_zero_first(rank, lambda: task.build_model(loader.manifest, saved))
    return Engine(model, task.parameter_groups(model), config, rank)


def startup_message(run: Run, folder: RunFolder) -> str:
    """What is about to happen, for the log."""
    config, rank, engine = run.config, run.rank, run.engine
    begins = f"resumes at step {run.state.step}" if run.state.step else "starts"
    millions = sum(sharded_state.shape(p).numel() for p in engine.parameters.values()) / 1e6
    return (
        f"{folder.path} {begins}: {run.total_steps} steps of {config.optim.global_batch_size} videos, {millions:.1f} M parameters, "
        f"{rank.world} x {rank.device.type}, {engine.accumulation} x {config.engine.micro_batch_size} videos a rank, "
        f"ZeRO {engine.stage}, {engine.precision}"
    )


def log_end(run: Run, reason: EndReason, folder: RunFolder) -> None:
    """Record and say how the attempt ended."""
    if reason is EndReason.FINISHED:
        with run.watchdog.during("waiting for the last picture", 0):  # which has a limit of its own
            log_reconstruction(run, LAST_SECONDS)
            run.drawing.checkpoint(run.state.step, is_last=True)
            log_reconstruction(run, LAST_SECONDS)
        run.events.event(Kind.FINISH, run.state.step)
        newest = run.store.complete()[-1].folder if run.rank.is_rank_zero else None
        run.progress.say(f"{folder.path} is complete after {run.state.step} steps; its weights: {newest}")
    else:
        run.events.event(Kind.STOP, run.state.step, reason=reason)
        saved = "which could not be saved" if run.failed_saves else "all saved"
        by = f"the file {folder.path / 'stop'}" if reason is EndReason.STOPPED else "a signal"
        run.progress.say(f"stopped by {by} after step {run.state.step}, {saved}: the same run goes on from here")
