"""Loggers: sinks that send metrics, events, and pictures to TensorBoard or Weights & Biases."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row
from motionmae.text import join_lines


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
        for key, value in _numbers(row).items():
            self._writer.add_scalar(key, value, row["step"])
        self._writer.flush()  # now, while this attempt holds the lease of the folder

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Sink that sends metrics and pictures to Weights & Biases. All attempts of a run are one W&B run.

    If a resumed run repeats a step, W&B keeps both points on the axis ``step``. The files of W&B are in ``RUN/wandb``.

    Raises:
        UserError: wandb is not installed, or W&B refuses the run, for example because the API key is missing.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"log.wandb={config.log.wandb} needs wandb: pip install 'motionmae[viz]'") from error
        self._wandb, self._run = wandb, folder.path
        try:
            self._wandb_run = wandb.init(
                project=config.log.wandb_project,
                name=config.name,
                id=hashlib.sha256(str(self._run.resolve()).encode()).hexdigest()[:16],
                dir=str(self._run),
                mode="online" if config.log.wandb == "online" else "offline",
                resume="allow",
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B could not start with log.wandb={config.log.wandb} ({join_lines(error)}): "
                "run `wandb login`, or set log.wandb=offline"
            ) from error
        self._wandb_run.define_metric("*", step_metric="step")

    def event(self, row: Row) -> None:
        """Send a picture; other events are only in ``events.jsonl``."""
        if row["kind"] == Kind.PICTURE and "path" in row:
            picture = self._wandb.Image(str(self._run / row["path"]))
            self._call(self._wandb_run.log, {row.get("title", "reconstruction"): picture, "step": row["step"]})

    def metrics(self, row: Row) -> None:
        self._call(self._wandb_run.log, {**_numbers(row), "step": row["step"]})

    def close(self) -> None:
        self._call(self._wandb_run.finish)

    def _call(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Call W&B, and turn an error of its service into an OSError, which never stops training."""
        try:
            action(*arguments)
        except self._wandb.Error as error:
            raise OSError(str(error)) from error


def _numbers(row: Row) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "time")}
