"""Validation of a run: measure, remember the best checkpoint, write figures and pictures, give way to stop requests."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from motionmae.config import Config
from motionmae.data.held_out.shards import knn_test
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest
from motionmae.distributed.context import DistributedContext, rank_zero_first
from motionmae.distributed.stop_requests import Request, StopRequests
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.files import write_json
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, Kind, Row
from motionmae.runs.formatting import describe_figures
from motionmae.runs.lease import Lease
from motionmae.training.validation.accuracy import Accuracy
from motionmae.training.validation.confusion import draw_confusion
from motionmae.training.validation.heads import HeadLosses
from motionmae.training.validation.knn import KnnAccuracy
from motionmae.training.validation.measure import Figures, Measured, Measurement, UnreadableShardsError
from motionmae.training.validation_record import ValidationRecord

_OURS = re.compile(r"step-([0-9]{8})\.(json|png)")  # files of RUN/validation


class StopValidationError(Exception):
    """A stop request, agreed by all ranks, ends a validation before it is complete."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


@dataclass
class StopPause:
    """Pause between the rounds of a validation: all ranks agree on stop requests, and the watchdog starts anew."""

    stop_requests: StopRequests
    watchdog: Watchdog
    what: str
    request: Request = field(default_factory=lambda: Request(None, save=False))

    def begin(self) -> None:
        self.watchdog.expect(self.what, self.watchdog.limits.step_seconds)
        self.stop_requests.begin_sync()

    def end(self) -> None:
        found = self.stop_requests.finish_sync()
        self.request = Request(found.end, found.save or self.request.save)
        if found.end:
            raise StopValidationError(self.request)


@dataclass(frozen=True)
class Validated:
    """Result of a validation, the same on every rank."""

    record: ValidationRecord
    request: Request  # what people or the cluster asked for meanwhile
    row: Row = field(default_factory=dict)  # figures for the row of metrics.jsonl; empty if there are none
    is_best: bool = False


@dataclass(frozen=True)
class Validator:
    """Validation of one run. All ranks call :meth:`run` after the same step."""

    config: Config
    rank: DistributedContext
    engine: Engine
    folder: RunFolder
    lease: Lease
    events: EventLog
    watchdog: Watchdog
    log: Callable[[str], None]
    class_names: tuple[str, ...]
    measurements: Sequence[Measurement]
    steps_per_epoch: int

    def is_due(self, step: int) -> bool:
        return step % self.config.validation.interval(self.steps_per_epoch) == 0

    def stops_early(self, record: ValidationRecord) -> bool:
        return 0 < self.config.validation.patience <= record.waited

    def run(self, step: int, record: ValidationRecord, request: Request, stop_requests: StopRequests) -> Validated:
        """Validate the weights after ``step``. A stop request skips the validation, or ends it: it is then owed.

        All ranks must call this.
        """
        began = time.perf_counter()
        what = f"validating step {step}"
        pause = StopPause(stop_requests, self.watchdog, what, request)
        try:
            if request.end:
                raise StopValidationError(request)
            with self.watchdog.during(what, self.watchdog.limits.startup_seconds), self.engine.evaluation() as model:
                parts = [measurement.measure(model, pause) for measurement in self.measurements]
        except StopValidationError as stop:
            self.log(f"the validation of step {step} is left to the next attempt, because the run must stop")
            return Validated(replace(record, owed=True), stop.request)
        except UnreadableShardsError as error:
            self.events.event(Kind.VALIDATION, step, error=str(error), seconds=time.perf_counter() - began)
            self.log(f"step {step} was not validated ({error}); training continues")
            return Validated(replace(record, step=step, owed=False), pause.request)
        return self._record(step, record, parts, began, pause.request)

    def _record(
        self, step: int, record: ValidationRecord, parts: list[Measured], began: float, request: Request
    ) -> Validated:
        figures: Figures = {name: value for part in parts for name, value in part.figures.items()}
        metric, min_delta = self.config.validation_metric, self.config.validation.min_delta
        after = record.after(step, metric, figures.get(metric), min_delta)
        is_best = after.best is not None and after.best.step == step
        facts: dict[str, Any] = {**figures, "videos": parts[0].videos, "missing": sum(part.missing for part in parts)}
        if self.rank.is_rank_zero:
            picture = self._write(step, facts, parts[0], after)
            if picture:
                self.events.event(Kind.PICTURE, step, path=picture, title="confusion")
        seconds = time.perf_counter() - began
        epoch = step / self.steps_per_epoch
        self.events.event(Kind.VALIDATION, step, epoch=epoch, **facts, is_best=is_best, seconds=seconds)
        text = f"validation of step {step}: {describe_figures(figures)}, {parts[0].videos} videos in {seconds:.1f} s"
        self.log(text + self._remark(after, is_best))
        row = {"val_step": step, **{f"val_{name}": value for name, value in figures.items()}}
        return Validated(after, request, row, is_best)

    def _remark(self, record: ValidationRecord, is_best: bool) -> str:
        if is_best:
            return "; the best so far"
        if record.best is None:
            return ""
        best = f"; the best is {record.best.metric} {record.best.value:.4g} of step {record.best.step}"
        patience = self.config.validation.patience
        return best + (f", {record.waited} of {patience} validations without a better one" if patience else "")

    def _write(self, step: int, facts: Row, measured: Measured, record: ValidationRecord) -> str:
        """Write figures and confusion matrix to RUN/validation, where only the newest and the best step stay.

        Return the path of the picture in the run folder, empty without one. A full disk does not end training.
        """
        self.lease.check()
        folder = self.folder.validation
        kept = {step, record.best.step if record.best else step}
        try:
            folder.mkdir(exist_ok=True)
            content = {"step": step, **facts}
            picture = folder / f"step-{step:08d}.png"
            if measured.confusion is not None:
                content |= {"classes": list(self.class_names), "confusion": measured.confusion.tolist()}
                top1 = f"{facts['top1']:.1f} % top-1 of {facts['videos']} videos"
                heading = f"{self.config.name}, validation of step {step}: {top1}"
                draw_confusion(picture, np.asarray(measured.confusion), self.class_names, heading)
            write_json(folder / f"step-{step:08d}.json", content)
            for path in folder.iterdir():
                if (found := _OURS.fullmatch(path.name)) and int(found[1]) not in kept and path.is_file():
                    path.unlink()
        except OSError as error:
            self.log(f"{folder} cannot be written ({error.strerror or error}); training continues")
            return ""
        return "" if measured.confusion is None else str(picture.relative_to(self.folder.path))


def protocol_of(config: Config) -> str:
    """Return a text that changes if the figures of validations cannot be compared any more."""
    validation = config.validation
    shards = [validation.shards, *([validation.knn_train, knn_test(config)] if validation.knn_train else [])]
    prints = [load_manifest(folder, config.data).fingerprint[:12] for folder in shards]
    views = f"{validation.clips}x{validation.crops}" if config.task == "finetune" else str(validation.heldout_clips)
    k = f" k={validation.knn_k}" if validation.knn_train else ""
    return f"{config.validation_metric} of {' '.join(prints)} by {views}{k}"


def build_measurements(
    config: Config, class_names: tuple[str, ...], engine: Engine, rank: DistributedContext
) -> list[Measurement]:
    """Open the held-out shards. Raises a UserError if they cannot be read."""
    sharded = engine.stage == 3
    if config.task == "finetune":
        return [Accuracy(config, class_names, rank, sharded=sharded)]
    measurements: list[Measurement] = [HeadLosses(config, rank, sharded=sharded)]
    if config.validation.knn_train:
        measurements.append(KnnAccuracy(config, rank, sharded=sharded))
    return measurements


def build_validator(
    config: Config,
    loader: ClipLoader,
    engine: Engine,
    rank: DistributedContext,
    folder: RunFolder,
    lease: Lease,
    events: EventLog,
    watchdog: Watchdog,
    log: Callable[[str], None],
) -> Validator | None:
    """Open the held-out shards; return None without ``validation.shards``. All ranks must call this."""
    if not config.validation.shards:
        return None
    names, steps = loader.manifest.class_names, loader.steps_per_epoch
    measurements = rank_zero_first(rank, lambda: build_measurements(config, names, engine, rank))
    return Validator(config, rank, engine, folder, lease, events, watchdog, log, names, measurements, steps)
