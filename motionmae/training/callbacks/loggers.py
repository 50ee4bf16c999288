"""Sinks for people who look at runs in TensorBoard or in Weights & Biases: curves, events, pictures."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row


class TensorBoard:
    """The sink that writes for TensorBoard.

    Args:
        folder: of the run.
        resumed_step: the step that training goes back to, 0 for a new run.
    """

    def __init__(self, folder: RunFolder, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import

        # TensorBoard then hides what the last attempt drew beyond the step that training goes back to.
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=resumed_step + 1 if resumed_step else None)
        self._run = folder.path

    def event(self, row: Row) -> None:
        """Show an event as text, a picture as a picture."""
        if row["kind"] == Kind.PICTURE.value and "path" in row:
            self._writer.add_image("reconstruction", _pixels(self._run / row["path"]), row["step"], dataformats="HWC")
        self._writer.add_text("events", f"{row['kind']}: {json.dumps(row)}", row["step"])

    def metrics(self, row: Row) -> None:
        """Draw every number of the row over its step."""
        for key, value in _numbers(row).items():
            self._writer.add_scalar(key, value, row["step"])
        self._writer.flush()  # not by a thread of its own, at a time when the folder may be another attempt's

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WeightsAndBiases:
    """The sink for Weights & Biases (``pip install 'motionmae[viz]'``); all attempts of a run are one run there.

    Steps that a resumed run repeats are drawn again: W&B keeps both, over the axis ``step``.

    Args:
        config: of the run; ``log.wandb`` is ``offline`` or ``online``.
        folder: of the run; the files lie below its ``wandb``.

    Raises:
        UserError: if wandb is not installed or does not let the run in, for want of a key say.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"log.wandb={config.log.wandb} needs wandb: pip install 'motionmae[viz]'") from error
        self._wandb, self._run = wandb, folder.path
        try:
            self._board = self._open(config)
        except wandb.Error as error:
            raise UserError(
                f"log.wandb={config.log.wandb}: {str(error).splitlines()[0]}: mend that, or set log.wandb=offline"
            ) from error
        self._board.define_metric("*", step_metric="step")

    def _open(self, config: Config) -> Any:
        return self._wandb.init(
            project=config.log.wandb_project,
            name=config.name,
            id=hashlib.sha256(str(self._run.resolve()).encode()).hexdigest()[:16],
            dir=str(self._run),
            mode="online" if config.log.wandb == "online" else "offline",
            resume="allow",
            config=config.model_dump(mode="json"),
            settings=self._wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def event(self, row: Row) -> None:
        """Show a picture; other events are in ``events.jsonl``."""
        if row["kind"] == Kind.PICTURE.value and "path" in row:
            picture = self._wandb.Image(str(self._run / row["path"]))
            self._log({"reconstruction": picture, "step": row["step"]})

    def metrics(self, row: Row) -> None:
        """Draw every number of the row over its step."""
        self._log({**_numbers(row), "step": row["step"]})

    def close(self) -> None:
        """Hand everything over."""
        with self._service():
            self._board.finish()

    def _log(self, values: dict[str, Any]) -> None:
        with self._service():
            self._board.log(values)

    @contextmanager
    def _service(self) -> Iterator[None]:
        """What W&B's service cannot do, for it has ended say, is an OSError, which never stops training."""
        try:
            yield
        except self._wandb.Error as error:
            raise OSError(str(error)) from error


def _numbers(row: Row) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "time")}


def _pixels(path: Path) -> Any:
    """A PNG as RGB, (H, W, 3) uint8."""
    import cv2

    picture = cv2.imread(str(path))
    if picture is None:
        raise OSError(f"{path} cannot be read")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
