"""Loggers of a run (``config.log``): TensorBoard, and the trackers."""

import json

import numpy as np
from PIL import Image

from motionmae.config import Config
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, Kind, Row
from motionmae.text import get_logger
from motionmae.training.trackers.base import Opener, numbers, open_tracker
from motionmae.training.trackers.mlflow_run import MLflow
from motionmae.training.trackers.trackio_run import Trackio
from motionmae.training.trackers.wandb_run import WeightsAndBiases

logger = get_logger(__name__)


class TensorBoard:
    """Sink that writes metrics, events and pictures to TensorBoard's files; ``resumed_step`` is 0 for a new run."""

    def __init__(self, folder: RunFolder, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import

        # purge_step: TensorBoard hides the previous attempt's points beyond the resumed step.
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=resumed_step + 1 if resumed_step else None)
        self._run = folder.path

    def event(self, row: Row) -> None:
        """Write an event as text, and a picture also as an image."""
        if row["kind"] == Kind.PICTURE and "path" in row:
            pixels = np.asarray(Image.open(self._run / row["path"]).convert("RGB"))
            self._writer.add_image(row.get("title", "reconstruction"), pixels, row["step"], dataformats="HWC")
        code = f"    {json.dumps(row)}"  # TensorBoard renders Markdown, and an indented line is code
        self._writer.add_text("events", code, row["step"])

    def metrics(self, row: Row) -> None:
        for key, value in numbers(row).items():
            self._writer.add_scalar(key, value, row["step"])
        self._writer.flush()  # now, while this attempt holds the lease of the folder

    def close(self) -> None:
        self._writer.close()


def add_loggers(events: EventLog, config: Config, folder: RunFolder, resumed_step: int) -> None:
    """Add the loggers of ``config.log``, or raise a UserError if a package is not installed."""
    if config.log.tensorboard:
        try:
            events.add(TensorBoard(folder, resumed_step))
        except OSError as error:
            logger.warning("TensorBoard files cannot be written (%s); training continues", error)
    chosen = {"wandb": config.log.wandb != "off", "mlflow": config.log.mlflow, "trackio": config.log.trackio}
    openers: dict[str, Opener] = {"wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}
    for name, is_on in chosen.items():
        if is_on and (tracker := open_tracker(name, openers[name], config, folder, resumed_step)):
            events.add(tracker)
