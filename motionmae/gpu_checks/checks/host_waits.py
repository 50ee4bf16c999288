"""Check of the places at which the host waits for the GPU during a training step."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import motionmae
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, load, make_shards, real_trainer

_STEPS, _WARM_UP = 10, 4
_REPORT = "called a synchronizing CUDA operation"  # torch's words; another warning says that the mode is a prototype
_PACKAGE = str(Path(motionmae.__file__).parent)
_ALLOWED = (f"{_PACKAGE}/engine/", f"{_PACKAGE}/data/loader.py")
"""Code of this project that may wait in a step: the engine reads the gradient norm to skip a non-finite step, and the
prefetcher waits for a copy that began a batch before."""


def check_host_waits(setting: Setting) -> Figures:
    """Count waits in ten steps of the real trainer: for the whole device (none is right), and those torch reports."""
    folder = setting.folder / "host_waits"
    config = load(TINY, setting, "optim.epochs=50", "log.every_steps=1000", "log.tensorboard=false")
    shards = make_shards(folder / "shards", config, samples=16)
    config = config.updated({"data.shards": str(shards), "output_dir": str(folder / "runs")})
    with real_trainer(config) as trainer:
        batches = trainer.batches()
        for _ in range(_WARM_UP):
            trainer.train_step(batches)
        with device_waits() as device_wide, reported_waits(setting.on_gpu) as reported:
            for _ in range(_STEPS):
                trainer.train_step(batches)
    figures: Figures = {
        "steps": _STEPS,
        "waits_for_the_device": dict(device_wide),
        "waits_by_place": {_short(place): count for place, count in reported.most_common(12)},
    }
    if not setting.on_gpu:
        figures["not_run"] = ["waits that torch reports (CUDA's sync debug mode)"]
    require(not device_wide, f"a step waits for the whole device in {', '.join(device_wide)}", figures)
    ours = [_short(place) for place in reported if place.startswith(_PACKAGE) and not place.startswith(_ALLOWED)]
    require(not ours, f"a step waits for the GPU in {', '.join(ours)}", figures)
    return figures


@contextmanager
def device_waits() -> Iterator[Counter[str]]:
    """Count the calls that wait for the whole device, by place: DeepSpeed's and torch's ``synchronize``."""
    from deepspeed.accelerator import get_accelerator

    accelerator, found = get_accelerator(), Counter[str]()

    def counting(original: Any) -> Any:
        def counted(*inputs: Any) -> Any:
            caller = traceback.extract_stack(limit=2)[0]
            found[f"{Path(caller.filename).name}:{caller.lineno}"] += 1
            return original(*inputs)

        return counted

    with (
        patch.object(accelerator, "synchronize", counting(accelerator.synchronize)),
        patch.object(torch.cuda, "synchronize", counting(torch.cuda.synchronize)),
    ):
        yield found


@contextmanager
def reported_waits(on_gpu: bool) -> Iterator[Counter[str]]:
    """Count the operators that torch reports to wait for a stream, by place. A beta of torch: it misses a few."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    found.update(f"{one.filename}:{one.lineno}" for one in caught if _REPORT in str(one.message))


def _short(place: str) -> str:
    return "/".join(Path(place).parts[-3:])
