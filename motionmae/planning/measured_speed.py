"""Speed of GPUs that `motionmae doctor gpu` measured on this account's machines, for `motionmae plan`."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from motionmae.config import Config
from motionmae.files import write_json
from motionmae.json_text import InvalidJsonError, JsonModel, load_json
from motionmae.planning.gpus import GPUS, Gpu, gpu_of_device
from motionmae.text import get_logger

logger = get_logger(__name__)
_LIMIT = 1 << 20  # bytes of the file


class MeasuredSpeed(JsonModel, extra="ignore"):
    """Speed of a pre-training step on one GPU."""

    device: str  # name that CUDA reports
    model: str  # model.size
    compiled: bool  # engine.compile
    mfu: Annotated[float, Field(gt=0, le=1)]
    clips_per_second: PositiveFloat
    micro_batch_size: PositiveInt
    torch: str  # version

    @property
    def case(self) -> tuple[str, str, bool]:
        """What was measured."""
        return self.device, self.model, self.compiled


class _File(JsonModel, extra="ignore"):
    speeds: tuple[MeasuredSpeed, ...]


def speed_file() -> Path:
    """Return the file of all measurements, in the user's cache folder (XDG base directory specification)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = cache if cache.is_absolute() else Path.home() / ".cache"  # a relative path must be ignored
    return root / "motionmae" / "gpu.json"


def read_speeds() -> tuple[MeasuredSpeed, ...]:
    """Read all measurements; none if there is no file. A damaged file is logged, and counts as none."""
    path = speed_file()
    try:
        return load_json(path, _File, _LIMIT).speeds
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, InvalidJsonError) as error:
        logger.warning("%s cannot be read (%s): delete it, and run `motionmae doctor gpu` again", path, error)
        return ()


def add_speeds(new: list[MeasuredSpeed]) -> Path:
    """Add measurements to the file; they replace those of the same GPU, model size and engine.compile.

    Raises UserError if the file cannot be written.
    """
    path = speed_file()
    measured = {speed.case: speed for speed in (*read_speeds(), *new)}
    with suppress(OSError):  # write_json reports it
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"speeds": [speed.model_dump() for speed in measured.values()]})
    return path


def find_speed(config: Config, gpu: Gpu) -> MeasuredSpeed | None:
    """Return the speed that was measured for a pre-training of this model size on this GPU; None if there is none.

    A clip of another size is assumed to reach the same MFU.
    """
    if config.task != "pretrain" or gpu not in GPUS.values():  # a peak that the user gives has another MFU
        return None
    for speed in read_speeds():
        same = (speed.model, speed.compiled) == (config.model.size, config.engine.compile)
        measured = gpu_of_device(speed.device)
        if same and measured and measured.part == gpu.part:
            return speed
    return None
