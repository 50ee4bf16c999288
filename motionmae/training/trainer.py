"""Trainer that takes steps, logs them, saves checkpoints, and rolls back after too many non-finite steps."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from motionmae.checkpointing import sharded
from motionmae.checkpointing.async_checkpointer import AsyncCheckpointer, SaveResult
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.config import Config
from motionmae.data.loader import Batch, ClipLoader, DevicePrefetcher
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.stop_requests import Request, StopRequests, StopSignals
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.errors import UserError
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog, Kind, Phase, Row, process_age
from motionmae.runs.history import RunHistory
from motionmae.runs.lease import Lease
from motionmae.training import nonfinite
from motionmae.training.callbacks.base import Callback
from motionmae.training.callbacks.metrics import StepMetrics, StepResult
from motionmae.training.nonfinite import SkippedStep
from motionmae.training.resume import damage_logger
from motionmae.training.save_interval import SaveInterval
from motionmae.training.state import TrainState, build_schedule, load_validation_record, seed_step
from motionmae.training.step_timer import StepTimer
from motionmae.training.task import Task
from motionmae.training.validation.validator import Validated, Validator

SLOW_DISK_SECONDS = 10.0  # waits for the previous checkpoint write that are longer than this are logged


@dataclass
class Trainer:
    """Trainer of a task: takes steps until the last one, or until a signal or a file in the run folder requests a stop.

    Every rank has a trainer (:func:`motionmae.training.setup.build_trainer`). All ranks call the same methods in order.
    """

    config: Config
    task: Task
    rank: DistributedContext
    folder: RunFolder
    lease: Lease
    signals: StopSignals
    engine: Engine
    loader: ClipLoader
    watchdog: Watchdog
    events: EventLog
    callbacks: Sequence[Callback]
    log: Callable[[str], None]  # prints a message on rank zero
    state: TrainState
    memory_copies: MemoryCopies
    newest_saved: str | None  # newest checkpoint on disk
    validator: Validator | None = None

    def __post_init__(self) -> None:
        config, optim, data = self.config, self.config.optim, self.config.data
        self.total_steps = self.loader.steps_per_epoch * optim.epochs
        self.store = CheckpointStore(self.folder.checkpoints)
        self.checkpointer = AsyncCheckpointer(self.store, self.rank, self.lease, config.checkpoint, self.watchdog)
        nodes = len(set(self.memory_copies.nodes))
        history, every = RunHistory(self.folder.path), config.checkpoint.every_steps
        self.save_interval = SaveInterval(every, self.state.step, nodes, self.rank, history)
        self.stop_requests = StopRequests(self.signals, self.folder.path, self.rank.is_rank_zero)
        self.failed_saves = 0  # since the last save that succeeded
        self.former_record = self.state.validation  # before the last validation
        self.unlogged_figures: Row = {}  # of a validation, until the next row of metrics
        self.schedule = build_schedule(self.engine.optimizer, optim, self.loader.steps_per_epoch)
        self.timer = StepTimer.of(self.rank.device)
        self.prefetcher = DevicePrefetcher(self.rank.device)
        clips_per_step = optim.global_batch_size * data.repeated_sampling
        self.metrics = StepMetrics(self.task.losses, clips_per_step, self.rank, self.engine, self.loader, self.timer)

    def fit(self) -> EndReason:
        """Take the remaining steps and save: every ``checkpoint.every_steps``, on request, and at the end.

        Checkpoints are written during the next steps. Training waits for the write only at the end or before a stop.

        Raises:
            UserError: too many steps were skipped, too many samples were corrupt, or the last save failed.
        """
        for callback in self.callbacks:
            callback.on_train_start()
        request, first_step = self.validate_owed(), True
        batches = self.batches()
        while not self.done and not request.end:
            self.stop_requests.begin_sync()  # its message travels during the step
            result = self.train_step(batches)
            request = self.stop_requests.finish_sync()
            self.timer.end_step()

            self.log_save(self.checkpointer.poll())
            self.memory_copies.poll()
            if first_step:
                seconds = {"seconds": self.timer.slowest_step, "since_process_start": process_age()}
                self.events.event(Kind.FIRST_STEP, self.state.step, **seconds)
                first_step = False
            if not self.engine.applied and (skipped := self.count_skipped(result)):
                with self.watchdog.during("rolling back", self.watchdog.limits.startup_seconds):
                    batches = self.rollback(skipped, request)
                continue
            validated = self.validate_if_due(request)
            request = validated.request
            if self.is_due(self.config.log.every_steps) or request.end or self.unlogged_figures:
                self.log_step(result)
            is_saved_now = self.done or request.end or validated.is_best
            if self.memory_copies.is_due(self.state.step) and not is_saved_now:
                self.copy_to_memory()  # the best checkpoint is written to disk, and no copy in memory may precede it
            is_due = self.save_interval.is_due(self.state.step) or self.done or validated.is_best
            if is_due or request.end or request.save:
                with self.watchdog.during(f"saving step {self.state.step}", self.watchdog.limits.save_seconds):
                    self.save(request)
        stopped = request.end if not self.done or self.state.validation.owed else None
        reason = stopped or EndReason.FINISHED
        self.end(reason)
        return reason

    def validate_if_due(self, request: Request) -> Validated:
        """Validate the weights of the last step if it is due. All ranks must call this."""
        if self.validator and (self.validator.is_due(self.state.step) or self.done):
            return self.validate(self.validator, request)
        return Validated(self.state.validation, request)

    def validate_owed(self) -> Request:
        """Validate the weights of the checkpoint if a stop of the attempt before left this out, and save the record."""
        if not self.state.validation.owed:
            return Request(None, save=False)
        self.state = replace(self.state, validation=replace(self.state.validation, owed=False))
        if not self.validator:
            return Request(None, save=False)
        request = self.validate(self.validator, Request(None, save=False)).request
        with self.watchdog.during(f"saving step {self.state.step}", self.watchdog.limits.save_seconds):
            self.save(request)
        return request

    def validate(self, validator: Validator, request: Request) -> Validated:
        """Validate the weights of the last step. All ranks must call this."""
        self.timer.enter(Phase.VALIDATION)
        with self.watchdog.during("writing a checkpoint before a validation", self.watchdog.limits.save_seconds):
            self.log_save(self.checkpointer.wait())  # every rank then knows whether the best checkpoint was saved
        self.former_record = self.state.validation
        validated = validator.run(self.state.step, self.state.validation, request, self.stop_requests)
        self.state = replace(self.state, validation=validated.record)
        self.unlogged_figures = validated.row
        self.timer.enter(Phase.OTHER)
        if self.stopped_early:
            best = validated.record.best
            of = f"{best.metric} {best.value:.4g} of step {best.step}" if best else "the first one"
            self.log(f"early stopping at step {self.state.step}: no validation exceeded {of}")
        return validated

    @property
    def done(self) -> bool:
        return self.state.step >= self.total_steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        return self.validator is not None and self.validator.stops_early(self.state.validation)

    def is_due(self, every_steps: int) -> bool:
        """Return True at multiples of ``every_steps`` and after the last step."""
        return self.state.step % every_steps == 0 or self.done

    def batches(self) -> Iterator[Batch]:
        """Yield micro-batches on the device, starting at the current position in the data."""
        return self.prefetcher(self.loader.batches(self.state.data_step))

    def train_step(self, batches: Iterator[Batch]) -> StepResult:
        self.timer.begin_step()
        self.watchdog.step(self.state.step + 1)
        self.schedule.step_update(self.state.step)
        seed_step(self.config.seed, self.state.step, self.rank.rank)
        result = self.forward_backward(batches)
        self.state.step += 1
        self.state.data_step += 1
        return result

    def forward_backward(self, batches: Iterator[Batch]) -> StepResult:
        losses = torch.zeros(len(self.task.losses), device=self.rank.device)
        samples = []
        for _ in range(self.engine.accumulation):
            self.timer.enter(Phase.DATA_WAIT)
            batch = next(batches)
            self.timer.enter(Phase.FORWARD)
            output = self.task.forward(self.engine, batch)
            self.timer.enter(Phase.BACKWARD)
            self.engine.backward(output[0])
            losses += torch.stack([loss.detach().float() for loss in output]) / self.engine.accumulation
            samples.append(batch.samples)
            self.timer.enter(Phase.OPTIMIZER)
            self.engine.step()
            del batch  # the loader reuses its memory for the next batch
        self.timer.enter(Phase.OTHER)
        return StepResult(losses, samples)

    def log_step(self, result: StepResult) -> None:
        """Write a row of metrics for the last step, with the figures of the last validation if they are new.

        All ranks must call this.
        """
        self.count_corrupt()
        copies = {"memory_copy_step": self.memory_copies.newest or 0}
        row = self.metrics.row(self.state, result) | copies | self.unlogged_figures
        self.unlogged_figures = {}
        self.events.metrics(row)
        for callback in self.callbacks:
            callback.on_log(row)

    def count_skipped(self, result: StepResult) -> SkippedStep | None:
        """Count and log a skipped step; return it if too many steps were skipped. All ranks must call this."""
        skipped = nonfinite.find_cause(self.engine, result.losses, result.samples)
        self.events.event(Kind.NONFINITE, self.state.step, data_step=self.state.data_step, **asdict(skipped))
        if skipped.cause != "overflow":
            self.log(f"step {self.state.step} skipped: its {skipped.cause} is not finite")
        return skipped if nonfinite.count_skipped(self.state, skipped) else None

    def rollback(self, skipped: SkippedStep, request: Request) -> Iterator[Batch]:
        """Load the checkpoint before the skipped steps, or the oldest; return the batches after them.

        All ranks must call this.

        The new state is saved at once: a run that is killed later does not repeat the skipped steps.

        Raises:
            UserError: the run has no checkpoint to load, or has rolled back recently.
        """
        self.log_save(self.checkpointer.wait())
        self.memory_copies.discard()
        before, checkpoint = self.state, None
        if nonfinite.may_roll_back(before):
            checkpoint = sharded.find_newest(
                self.store, self.rank, damage_logger(self.events, self.log), before=before.recently_skipped[0]
            )
        if checkpoint is None:
            error = nonfinite.too_many_skipped(before, skipped)
            error.already_reported = not self.rank.is_rank_zero
            raise error
        sharded.restore(self.engine, self.rank, checkpoint)
        rollbacks = [*before.rollbacks, before.data_step]
        record = load_validation_record(checkpoint, self.store, self.rank)  # later validations were of skipped weights
        if self.validator:  # an attempt with other held-out videos may have saved the checkpoint
            record = record.under(before.validation.protocol)
        self.former_record = record
        self.state = replace(before, step=checkpoint.step, recently_skipped=[], rollbacks=rollbacks, validation=record)
        self.timer.take()
        name = checkpoint.folder.name
        fields = {"from_step": before.step, "data_step": before.data_step, "path": name}
        self.events.event(Kind.ROLLBACK, checkpoint.step, **fields)
        self.log(
            f"rollback from step {before.step} to {name} after {len(before.recently_skipped)} skipped steps; "
            "training continues with the samples after the skipped steps"
        )
        self.save(request)
        return self.batches()

    def count_corrupt(self) -> None:
        """Add all ranks' corrupt samples to the state; raise a UserError beyond the config's limit.

        All ranks must call this.
        """
        new: dict[str, str] = {}
        for found in gather_objects(dict(self.loader.corrupt_samples)):
            for sample, reason in found.items():
                if str(sample) not in self.state.corrupt:
                    new[str(sample)] = reason
        if not new:
            return
        self.state.corrupt.update(new)
        total, limit = len(self.state.corrupt), self.config.data.max_corrupt_samples
        reasons = dict(Counter(self.state.corrupt.values()))
        self.events.event(Kind.CORRUPT_SAMPLE, self.state.step, samples=new, total=total, reasons=reasons)
        self.log(f"{total} samples could not be read so far and were replaced by other samples ({reasons})")
        if total > limit:
            raise UserError(
                f"{total} samples of {self.config.data.location} cannot be read ({reasons}), more than "
                f"data.max_corrupt_samples={limit}: restore the shards, or set a higher limit",
                already_reported=not self.rank.is_rank_zero,
            )

    def save(self, request: Request) -> None:
        """Start to save a checkpoint; wait for the write if the attempt ends. All ranks must call this."""
        start = time.perf_counter()
        self.timer.enter(Phase.CHECKPOINT)
        if request.end:
            self.events.event(Kind.PREEMPTION, self.state.step, reason=request.end)
        self.count_corrupt()
        self.log_save(self.checkpointer.wait())
        waited = time.perf_counter() - start
        self.checkpointer.start(self.engine, self.state.step, self.checkpoint_metadata(), start, waited)
        if request.end or self.done:
            result = self.checkpointer.wait()
            assert result is not None
            self.log_save(replace(result, blocking=result.seconds))
        self.save_interval.begin(self.state.step)
        self.stop_requests.clear(request)
        self.timer.enter(Phase.OTHER)

    def copy_to_memory(self) -> None:
        """Start to copy the state to the memory of the nodes. All ranks must call this."""
        self.timer.enter(Phase.MEMORY_COPY)
        self.count_corrupt()
        state = self.state
        self.memory_copies.start(
            self.engine, self.checkpoint_metadata(), state.step, state.data_step, self.newest_saved
        )
        self.timer.enter(Phase.OTHER)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Return the content of a checkpoint's state.json."""
        return {
            "trainer": asdict(self.state),
            "loader": self.loader.state(self.state.data_step),
            "config": self.config.model_dump(mode="json"),
            "task": self.task.state(),
            "writer": {
                "attempt": self.events.attempt,
                "world": self.rank.world,
                "zero_stage": self.engine.stage,
                "precision": self.engine.precision,
                "torch": torch.__version__,
            },
        }

    def log_save(self, result: SaveResult | None) -> None:
        """Log the result of a save, if there is one. Only a failure of the run's last save raises a UserError."""
        if result is None:
            return
        if result.checkpoint is None:
            self.log_failed_save(result)
            return
        self.failed_saves = 0
        if result.waited > SLOW_DISK_SECONDS:
            self.log(
                f"training waited {result.waited:.0f} s for the write of the previous checkpoint: "
                f"raise checkpoint.every_steps (now {self.save_interval.steps}), or use a faster disk"
            )
        seconds = {"seconds": result.seconds, "blocking": result.blocking, "waited": result.waited}
        path, size = result.checkpoint.folder.name, result.checkpoint.bytes
        self.newest_saved = path
        if result.blocking < result.seconds:  # not the last save, for which training waits
            self.save_interval.add(result)
        self.events.event(Kind.CHECKPOINT, result.step, path=path, bytes=size, **seconds)
        for callback in self.callbacks:
            callback.on_save(result.step)

    def log_failed_save(self, result: SaveResult) -> None:
        self.failed_saves += 1
        message = f"the checkpoint of step {result.step} cannot be written to {self.store.folder} ({result.error})"
        self.events.event(Kind.CHECKPOINT_FAILED, result.step, error=result.error, failures=self.failed_saves)
        if (best := self.state.validation.best) and best.step == result.step:
            self.state = replace(self.state, validation=replace(self.state.validation, best=self.former_record.best))
        if self.done and result.step == self.state.step:
            raise UserError(
                f"{message}: make room and run the same command again, which resumes from the last checkpoint",
                already_reported=not self.rank.is_rank_zero,
            )
        self.log(f"{message}; training continues, {self.failed_saves} saves in a row have failed")

    def end(self, reason: EndReason) -> None:
        """Finish the callbacks' work after the last step, and log the end of the attempt.

        The memory copies are freed unless the last save has failed.
        """
        step = self.state.step
        if not self.failed_saves:
            self.memory_copies.discard()
        if reason is EndReason.FINISHED:
            with self.watchdog.during("finishing the callbacks", 0):  # callbacks have their own time limits
                for callback in self.callbacks:
                    callback.on_train_end(step)
            self.events.event(Kind.FINISH, step)
            newest = self.store.complete()[-1].folder if self.rank.is_rank_zero else None
            best = self.state.validation.describe_other_best(step)
            self.log(f"{self.folder.path} is complete after {step} steps; the weights are in {newest}{best}")
        else:
            self.events.event(Kind.STOP, step, reason=reason)
            unsaved = "the last steps are not saved: the same command resumes from the last checkpoint"
            saved = "all steps are saved: the same command resumes from here"
            cause = f"the file {self.folder.path / 'stop'}" if reason is EndReason.STOPPED else "a signal"
            self.log(f"stopped by {cause} after step {step}; {unsaved if self.failed_saves else saved}")
