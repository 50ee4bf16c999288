"""Work of the ranks in tests of validation."""

import os
from collections.abc import Callable
from typing import Any

import torch

from motionmae.config import Config
from motionmae.distributed.process_group import init_distributed
from motionmae.distributed.stop_requests import Request, StopRequests
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.end_reason import EndReason
from motionmae.training.finetune import Finetuning
from motionmae.training.pretrain import Pretraining
from motionmae.training.setup import run_training
from motionmae.training.validation import validator
from motionmae.training.validation.validator import build_measurements

CLASSES = ("bar0", "bar1", "bar2")


class NoPause:
    def begin(self) -> None: ...

    def end(self) -> None: ...


def measure_all(cases: list[Config]) -> list[tuple[dict[str, float], list[list[int]] | None]]:
    """Measure the initial weights of each case; return the figures, and the confusion matrix of a classifier."""
    answers = []
    for config in cases:
        rank = init_distributed(config.engine)
        finetunes = config.task == "finetune"
        model = build_classifier(config, len(CLASSES)) if finetunes else build_motionmae(config)
        if finetunes:  # its initial head is so small that all classes are equal
            torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
        task = (Finetuning if finetunes else Pretraining)(config)
        engine = Engine(model, task.parameter_groups(model), config, rank)
        figures: dict[str, float] = {}
        confusion = None
        with engine.evaluation() as module:
            for measurement in build_measurements(config, CLASSES, engine, rank):
                measured = measurement.measure(module, NoPause())
                figures |= measured.figures
                confusion = confusion or (None if measured.confusion is None else measured.confusion.tolist())
        assert module.training
        answers.append((figures, confusion))
        engine.close()
    return answers


def run_with_stop_in_validation(config: Config, step: int, rounds: int) -> str:
    """Run; ask for a stop after ``rounds`` rounds of the validation of ``step``. Return the end reason's name."""
    finish, done = StopRequests.finish_sync, 0
    begin: Callable[..., Any] = validator.StopPause.begin

    def begin_and_count(pause: validator.StopPause) -> None:
        nonlocal done
        done += pause.what == f"validating step {step}"
        begin(pause)

    def finish_or_stop(requests: StopRequests) -> Request:
        found = finish(requests)
        return Request(EndReason.PREEMPTED, save=False) if done > rounds else found

    validator.StopPause.begin = begin_and_count  # type: ignore[method-assign]
    StopRequests.finish_sync = finish_or_stop  # type: ignore[method-assign]
    return run_training(config).name


def run_and_die_in_validation(config: Config, step: int) -> None:
    """Run; the process dies in the validation of ``step``, as by SIGKILL."""
    begin = validator.StopPause.begin

    def begin_or_die(pause: validator.StopPause) -> None:
        if pause.what == f"validating step {step}":
            os._exit(9)
        begin(pause)

    validator.StopPause.begin = begin_or_die  # type: ignore[method-assign]
    run_training(config)
