"""Run in Weights & Biases, online or in files of the run folder. Each attempt has files of its own, of one W&B run."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Row
from motionmae.text import join_lines
from motionmae.training.trackers.base import Tracker, new_id, numbers

_FLUSH_SECONDS = 0.2  # W&B's default is 15: rows that are not flushed are lost if the process is killed
_BLOCK = 32768  # bytes of a block of W&B's file, which has the format of LevelDB's log
_HEADER = struct.Struct("<IHB")  # checksum, length and kind of each part of a record
_WHOLE, _LAST = 1, 4  # kinds of the parts that end a record


class WeightsAndBiases(Tracker):
    """Tracker for Weights & Biases. The files of W&B are in ``RUN/wandb``.

    Raises:
        UserError: wandb is not installed, or W&B refuses the run, for example because the API key is missing.
    """

    def __init__(self, config: Config, folder: RunFolder, run_id: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"log.wandb={config.log.wandb} needs wandb: pip install 'motionmae[viz]'") from error
        self._wandb, self._run = wandb, folder.path
        older = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]  # id before RUN/trackers.json
        has_older = any((folder.path / "wandb").glob(f"*run-*-{older}"))
        self.run_id = run_id or (older if has_older else new_id())
        offline = config.log.wandb == "offline"
        try:
            self._wandb_run = wandb.init(
                project=config.log.wandb_project,
                name=config.name,
                id=self.run_id,
                dir=str(self._run),
                mode="offline" if offline else "online",
                resume="allow",
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    x_transaction_log_flush_interval=_FLUSH_SECONDS,
                ),
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B could not start with log.wandb={config.log.wandb} ({join_lines(error)}): "
                "run `wandb login`, or set log.wandb=offline"
            ) from error
        self._wandb_run.define_metric("*", step_metric="step")
        self._pictures: dict[str, Any] = {}  # wait for the next row: W&B takes steps in rising order only
        stored = last_stored_step(folder.path / "wandb", self.run_id)
        self.stored_step = stored if offline or not self._wandb_run.resumed else self._wandb_run.step - 1

    def picture(self, path: Path, step: int, title: str) -> None:
        self._pictures[title] = self._wandb.Image(str(self._run / path), caption=f"step {step}")

    def send(self, row: Row) -> None:
        self._log({**numbers(row), "step": row["step"]}, row["step"])

    def close(self) -> None:
        if self._pictures:
            self._log({}, self.stored_step + 1)
        self._call(self._wandb_run.finish)

    def _log(self, values: dict[str, Any], step: int) -> None:
        pictures, self._pictures = self._pictures, {}
        self._call(self._wandb_run.log, {**values, **pictures}, step, True)

    def _call(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Call W&B, and turn an error of its service into an OSError, which never stops training."""
        try:
            action(*arguments)
        except self._wandb.Error as error:
            raise OSError(str(error)) from error


def last_stored_step(folder: Path, run_id: str) -> int:
    """Return the last step in the offline files of a run, 0 if there is none."""
    for file in sorted(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"), reverse=True):
        if steps := [step for record in read_records(file) if (step := _step_of(record)) is not None]:
            return max(steps)
    return 0


def _step_of(record: Any) -> int | None:
    """Return the step of a row of values, whose first step is 1; None for records of other kinds."""
    if record.WhichOneof("record_type") != "history":
        return None
    return next((int(item.value_json) for item in record.history.item if list(item.nested_key) == ["step"]), None)


def read_records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, up to a torn one that a killed process left."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

    content, position, parts = file.read_bytes(), 7, b""  # W&B's own header has seven bytes
    while position + _HEADER.size <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(content, position)
        parts += content[position + _HEADER.size : position + _HEADER.size + length]
        position += _HEADER.size + length
        if position > len(content) or not kind:
            return
        if kind in (_WHOLE, _LAST):
            try:
                yield Record.FromString(parts)
            except DecodeError:
                return
            parts = b""
