"""Logger for TensorBoard: a sink that writes metrics, events, and pictures."""

import json

import numpy as np
from PIL import Image

from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row
from motionmae.training.trackers.base import numbers


class TensorBoard:
    """Sink that writes TensorBoard event files; ``resumed_step`` is 0 for a new run."""

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
