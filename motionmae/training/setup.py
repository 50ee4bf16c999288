"""Set-up of training: check the config, take the lease, build the trainer, and load the newest checkpoint."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import torch

from motionmae.checkpointing import sharded
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.config import Config, load_config, save_config, saved_config
from motionmae.config.differences import describe_differences
from motionmae.config.resume import check_same_run
from motionmae.data.held_out.shards import check_shards
from motionmae.data.loader import ClipLoader, check_same_stream, stream_identity
from motionmae.data.mixture.sources import Sources
from motionmae.data.open_shards import load_sources
from motionmae.distributed.context import (
    DistributedContext,
    gather_objects,
    rank_zero_first,
    run_on_rank_zero,
)
from motionmae.distributed.process_group import distributed
from motionmae.distributed.stop_requests import Stopped, StopSignals
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine, import_deepspeed
from motionmae.errors import UserError
from motionmae.runs.checkpoint_manifest import Checkpoint
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, StorageError, classify_error
from motionmae.runs.events import EventLog, JsonLines, Kind, Sink, process_age
from motionmae.runs.git_revision import git_revision
from motionmae.runs.lease import Lease, acquire_lease, current_holder
from motionmae.text import get_logger
from motionmae.training.callbacks.base import Callback, ProgressLine, SynchronizedGc
from motionmae.training.callbacks.loggers import add_loggers
from motionmae.training.callbacks.reconstructions import ReconstructionCallback
from motionmae.training.callbacks.stalled_heads import StalledHeads
from motionmae.training.out_of_memory import explain_out_of_memory
from motionmae.training.pretrain import Pretraining
from motionmae.training.resume import (
    SavedSettings,
    SavedTask,
    check_saved,
    damage_logger,
    find_checkpoint,
    is_complete,
    load_train_state,
)
from motionmae.training.step_timer import StartupTimer
from motionmae.training.task import Task
from motionmae.training.trainer import Trainer
from motionmae.training.validation.validator import build_validator

logger = get_logger(__name__)


def run_training(config: Config, *, signals: StopSignals | None = None, sinks: Iterable[Sink] = ()) -> EndReason:
    """Run one attempt: train from the newest valid checkpoint of the run folder, or start a new run.

    Every rank calls this function, under torchrun, under srun, or as a single process. The same call again resumes the
    run; a complete run stays unchanged.

    Args:
        config: a resumed run may change only fields marked MAY_CHANGE (:mod:`motionmae.config.resume`).
        signals: installed signal handlers; by default, handlers are installed during this call.
        sinks: further receivers of this rank's events and metrics; closed at the end.

    Raises:
        UserError: invalid data, settings or launch, a full disk at the last save, or too many non-finite steps.
    """
    with ExitStack() as stack:
        signals = signals or stack.enter_context(StopSignals())
        try:
            trainer = build_trainer(config, make_task(config), signals, sinks, stack)
        except Stopped as stopped:
            logger.warning("%s", stopped)
            return stopped.end
        return trainer.fit() if trainer else EndReason.FINISHED


def make_task(config: Config) -> Task:
    if config.task == "finetune":
        from motionmae.training.finetune import Finetuning  # imports timm's losses and mixup, slowly

        return Finetuning(config)
    return Pretraining(config)


def build_trainer(
    config: Config, task: Task, signals: StopSignals, sinks: Iterable[Sink], stack: ExitStack
) -> Trainer | None:
    """Build this rank's trainer from the newest checkpoint; return None if the run is complete.

    All ranks must call this.

    ``stack`` closes all parts of the trainer.

    Raises:
        UserError: settings or data are invalid, or differ from the run's.
    """
    startup = StartupTimer()
    rank = stack.enter_context(distributed(config.engine, signals))
    startup.done("process_group")
    folder = RunFolder(config.run_folder)
    store = CheckpointStore(folder.checkpoints)
    run_on_rank_zero(rank, lambda: validate_before_start(folder, store, config, rank.world))
    run_on_rank_zero(rank, folder.create)
    lease = run_on_rank_zero(rank, lambda: acquire_lease(folder.path))
    events = stack.enter_context(record_events(folder, rank, lease, sinks))
    watchdog = stack.enter_context(closing(start_watchdog(config, folder, rank, events)))
    stack.enter_context(explain_out_of_memory(config, rank))
    startup.done("run_folder")
    loader = stack.enter_context(closing(rank_zero_first(rank, lambda: build_loader(config, task, rank))))
    total_steps = loader.steps_per_epoch * config.optim.epochs
    progress = stack.enter_context(closing(ProgressLine(total_steps, rank.is_rank_zero)))
    startup.done("data")
    copies = MemoryCopies(rank, folder.path, lease, config.checkpoint.memory_steps, watchdog, progress.log)
    damaged = damage_logger(events, progress.log)
    checkpoint = find_checkpoint(store, rank, copies, lambda found: check_saved(found, config, loader), damaged)
    state = load_train_state(checkpoint, store, config, rank, loader)
    startup.done("find_checkpoint")
    if is_complete(state, config, total_steps):
        events.event(Kind.FINISH, state.step)
        early = f"it stopped early, at step {state.step} of {total_steps}"
        reason = f"all of its {total_steps} steps are done" if state.step >= total_steps else early
        progress.log(f"{folder.path} is complete: {reason}")
        copies.discard()
        return None

    if rank.is_rank_zero:
        lease.check()
        log_settings(config, folder, progress)
        save_config(config, folder.config)
        if checkpoint is None and config.task == "finetune":
            folder.encoder.unlink(missing_ok=True)  # left by an attempt that saved no checkpoint
    run_on_rank_zero(rank, lambda: add_loggers(events, config, folder, state.step))
    engine = build_engine(config, task, rank, loader, checkpoint, startup)
    stack.callback(engine.close)
    draws = rank.is_rank_zero and config.task == "pretrain"
    every_steps = config.log.reconstruction_every_steps if draws else 0
    pictures = stack.enter_context(closing(ReconstructionCallback(folder, every_steps, events, progress.log)))
    collector = stack.enter_context(closing(SynchronizedGc()))
    callbacks: list[Callback] = [progress, collector, pictures]
    if config.task == "pretrain":
        callbacks.append(StalledHeads(config, engine, rank, loader.steps_per_epoch, watchdog, progress.log))
    validator = build_validator(config, loader, engine, rank, folder, lease, events, watchdog, progress.log)
    trainer = Trainer(
        config=config,
        task=task,
        rank=rank,
        folder=folder,
        lease=lease,
        signals=signals,
        engine=engine,
        loader=loader,
        watchdog=watchdog,
        events=events,
        callbacks=callbacks,
        log=progress.log,
        state=state,
        memory_copies=copies,
        newest_saved=checkpoint.on_disk if checkpoint else None,
        validator=validator,
    )
    stack.callback(trainer.checkpointer.close)
    stack.callback(copies.close)
    run_on_rank_zero(rank, lambda: lease.begin(state.data_step))
    log_start(trainer, checkpoint, startup)
    if isinstance(task, Pretraining) and task.initial_weights:
        events.event(Kind.INIT, state.step, **task.initial_weights.as_row())
        progress.log(task.initial_weights.describe())
    return trainer


def validate_before_start(folder: RunFolder, store: CheckpointStore, config: Config, ranks: int = 1) -> None:
    """Raise a UserError if the folder is not a run's, or has a run with other settings or shards, or samples are few.

    A mistyped command changes nothing: this check comes before the run folder and its lease. Damaged checkpoints are
    ignored. A run without a checkpoint may start again with other settings, unless one of its attempts is in progress.
    """
    folder.refuse_foreign()
    sources = check_shards(config, ranks)
    saved = next(filter(None, map(_read_settings, reversed(store.complete()))), None)
    if saved is None and folder.config.is_file() and current_holder(folder.path):
        running = load_config(str(folder.config))
        identity = _identity(running, load_sources(running.data))
        saved = SavedSettings(config=running.model_dump(mode="json"), loader=identity)
    if saved:
        check_same_run(saved.config, config)
        check_same_stream(saved.loader, _identity(config, sources))


def _identity(config: Config, sources: Sources) -> dict[str, Any]:
    return stream_identity(sources, config.seed, config.optim.global_batch_size)


def _read_settings(checkpoint: Checkpoint) -> "SavedSettings | None":
    try:
        return checkpoint.state(SavedSettings)
    except (StorageError, UserError):
        return None


@contextmanager
def record_events(
    folder: RunFolder, rank: DistributedContext, lease: Lease, sinks: Iterable[Sink]
) -> Iterator[EventLog]:
    """Open the event log, and record the start of the attempt and the error that ends it.

    If the attempt has lost its lease, a LeaseLost replaces the error, such as the loss of other ranks.
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
        code=git_revision() if rank.is_rank_zero else "",
        job=attempt.job,
        restart=attempt.restart,
        start=attempt.start,
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


def start_watchdog(config: Config, folder: RunFolder, rank: DistributedContext, events: EventLog) -> Watchdog:
    stacks = folder.logs / f"stacks_{events.attempt}_rank{rank.rank}.txt"

    def report(sentence: str) -> None:
        events.event(Kind.HANG, events.last_step, error=sentence, stacks=str(stacks))
        events.event(Kind.STOP, events.last_step, reason=EndReason.HUNG, error=sentence)

    watchdog = Watchdog(config.watchdog, stacks, report, compiles=config.engine.compile)
    watchdog.expect("starting up", config.watchdog.startup_seconds)
    return watchdog


def build_loader(config: Config, task: Task, rank: DistributedContext) -> ClipLoader:
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
        pinned=rank.device.type == "cuda",
    )


def build_engine(
    config: Config,
    task: Task,
    rank: DistributedContext,
    loader: ClipLoader,
    checkpoint: Checkpoint | None,
    startup: StartupTimer,
) -> Engine:
    """Build the model on DeepSpeed and load the checkpoint. All ranks must call this."""
    import_deepspeed(rank.device)
    startup.done("import_deepspeed")
    saved = checkpoint.state(SavedTask).task if checkpoint else None
    task.choose_weights(rank, saved)
    reads_no_file = config.task == "pretrain" and (saved is not None or config.pretrain.init == "scratch")
    if reads_no_file:  # drawing the weights of a large model takes seconds
        model = task.build_model(loader.manifest, saved)
    else:
        model = rank_zero_first(rank, lambda: task.build_model(loader.manifest, saved))
    engine = Engine(model, task.parameter_groups(model), config, rank)
    startup.done("engine")
    if checkpoint:
        sharded.restore(engine, rank, checkpoint)
        startup.done("restore")
    return engine


def log_settings(config: Config, folder: RunFolder, progress: ProgressLine) -> None:
    """Print the settings of a new run that are not the defaults; of a resumed one, those that it changes."""
    last = saved_config(folder.config)
    lines = list(describe_differences(config, last))
    if last and len(lines) == 1:  # a restart with the same settings
        return
    for line in [*lines, f"all settings: {folder.config}"]:
        progress.log(line)


def log_start(trainer: Trainer, checkpoint: Checkpoint | None, startup: StartupTimer) -> None:
    seconds, events, total_steps = startup.seconds, trainer.events, trainer.total_steps
    if checkpoint:
        resume_seconds = seconds["find_checkpoint"] + seconds["restore"]
        path, source = checkpoint.folder.name, checkpoint.source
        events.event(Kind.RESUME, checkpoint.step, path=path, source=source, seconds=resume_seconds)
    events.event(Kind.READY, trainer.state.step, total_steps=total_steps, seconds=process_age(), startup=seconds)
    config, rank, engine, step = trainer.config, trainer.rank, trainer.engine, trainer.state.step
    millions = sum(sharded_state.shape(p).numel() for p in engine.parameters.values()) / 1e6
    begins = f"resumes at step {step} from {checkpoint.source}" if checkpoint else "starts"
    trainer.log(
        f"{trainer.folder.path} {begins}: {total_steps} steps of "
        f"{config.optim.global_batch_size} videos, {millions:.1f} M parameters, {rank.world} x {rank.device.type}, "
        f"{engine.accumulation} x {config.engine.micro_batch_size} videos a rank, ZeRO {engine.stage}, "
        f"{engine.precision}"
    )
    if trainer.loader.sources.is_mixture:
        described = trainer.loader.sources.describe(config.optim.global_batch_size)
        trainer.log(f"samples of an epoch: {described}")
