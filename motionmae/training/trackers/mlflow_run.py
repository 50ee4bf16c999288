"""Run in MLflow: on the server of MLFLOW_TRACKING_URI, or in the file ``OUTPUT_DIR/mlflow.db``."""

import logging
import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from motionmae.config import Config, flat
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row
from motionmae.text import excerpt, get_logger
from motionmae.training.trackers.base import Tracker, numbers

_ENVIRONMENT = {  # unless the user has set them
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 with growing pauses would delay the start and the end for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_MOST_VALUES = 1000  # MLflow's limit of one message
_MOST_PARAMETERS = 100
_ROWS = 30  # rows of one message, at most
_LONGEST_PAUSE = 60.0  # seconds
_LONGEST_PARAMETER = 6000  # characters
_MOST_ROWS = 10_000  # rows that wait while the server does not answer
_CLOSE_SECONDS = 30.0
_PATIENCE = 5.0  # seconds that training waits for a row to arrive
_STATUS = {EndReason.FINISHED: "FINISHED", EndReason.PREEMPTED: "SCHEDULED"}
"""States of MLflow; others are KILLED, which a user or Slurm did, and FAILED."""


class MLflow(Tracker):
    """Tracker for MLflow. A thread sends the rows, so that a slow server does not delay training.

    Raises:
        UserError: mlflow is not installed.
        OSError: the server does not answer, or refuses the run.
    """

    def __init__(self, config: Config, folder: RunFolder, run_id: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError as error:
            raise UserError("log.mlflow=true needs mlflow: pip install 'motionmae[mlflow]'") from error
        get_logger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its database
        self._entities, self._folder = mlflow.entities, folder.path
        output = Path(config.output_dir).resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output / 'mlflow.db'}"
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            local = (output / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None  # None: the server chooses
            self.run_id = run_id or self._create(config, local)
            if run_id:
                self._client.update_run(run_id, status="RUNNING")
            known = self._client.get_metric_history(self.run_id, "epoch") if run_id else []
        except Exception as error:  # MLflow raises its own, its database's and its HTTP client's
            raise OSError(f"MLflow at {excerpt(uri)}: {type(error).__name__}: {excerpt(error)}") from error
        self.stored_step = max((metric.step for metric in known), default=0)
        self._status = "KILLED"
        self._error: Exception | None = None  # of the thread, until a call reports it
        self._full = False
        self._answers = True
        self._arrived = threading.Event()  # set while no row waits
        self._arrived.set()
        self._closing = threading.Event()
        self._queue: queue.Queue[Row | None] = queue.Queue(_MOST_ROWS)
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def _create(self, config: Config, artifacts: str | None) -> str:
        """Create the run with the config as its parameters, and return its id."""
        name = config.log.mlflow_experiment
        experiment = self._client.get_experiment_by_name(name)
        known = experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
        run = self._client.create_run(known, run_name=config.name, tags={"motionmae.run": str(self._folder.resolve())})
        values = flat(config.model_dump(mode="json")).items()
        parameters = [self._entities.Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in values]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(run.info.run_id, params=parameters[start : start + _MOST_PARAMETERS])
        return str(run.info.run_id)

    def event(self, row: Row) -> None:
        if row["kind"] in (Kind.STOP, Kind.FINISH):
            reason = EndReason(row.get("reason", EndReason.FINISHED))
            self._status = _STATUS.get(reason, "KILLED" if reason.saved else "FAILED")
        elif row["kind"] == Kind.PICTURE and "path" in row:
            self._enqueue(row)

    def metrics(self, row: Row) -> None:
        """Send a row after the earlier ones have arrived, so that a kill loses one row at most.

        A server that does not answer is waited for once and not at every row.
        """
        if self._answers:
            self._answers = self._arrived.wait(_PATIENCE)
        elif self._arrived.is_set():
            self._answers = True
        super().metrics(row)

    def send(self, row: Row) -> None:
        self._enqueue(row)

    def _enqueue(self, row: Row) -> None:
        """Hand a row to the thread. Raises OSError if a row was refused, which the thread sends again."""
        try:
            if not self._full:  # a row that follows a lost one would hide it from the next attempt
                self._arrived.clear()
                self._queue.put_nowait(row)
        except queue.Full:
            self._full = True
        if self._full:
            raise OSError(f"{_MOST_ROWS} rows wait, and the next attempt sends all others")
        self._report()

    def _report(self) -> None:
        if error := self._error:
            self._error = None
            raise OSError(f"{type(error).__name__}: {excerpt(error)}") from error

    def close(self) -> None:
        self._closing.set()
        with suppress(queue.Full):  # the thread ends at its next failure
            self._queue.put_nowait(None)
        self._thread.join(_CLOSE_SECONDS)
        self._report()
        if self._thread.is_alive():
            raise OSError("MLflow does not answer; the next attempt sends the last rows")

    def _send_all(self) -> None:
        """Send rows until None comes, several at a time if they wait. Rows that are refused are sent again."""
        row: Row | None = {}
        while row is not None:
            rows = []
            while (row := self._queue.get()) is not None:
                rows.append(row)
                if self._queue.empty() or len(rows) == _ROWS:
                    break
            pause = 1.0
            while not self._sent(rows):
                if self._closing.wait(pause):
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)
            if self._queue.empty():
                self._arrived.set()
        self._sent([], end=True)

    def _sent(self, rows: Sequence[Row], end: bool = False) -> bool:
        """Send rows, or the end of the run; return whether MLflow took them. It stores a point once, sent twice."""
        values: list[Any] = []
        try:
            for row in rows:
                if "path" in row:
                    title = row.get("title", "reconstruction")
                    self._client.log_artifact(self.run_id, str(self._folder / row["path"]), title)
                    continue
                moment = int(1000 * row["time"])
                values += [self._entities.Metric(key, of, moment, row["step"]) for key, of in numbers(row).items()]
            for start in range(0, len(values), _MOST_VALUES):
                self._client.log_batch(self.run_id, metrics=values[start : start + _MOST_VALUES])
            if end:
                self._client.set_terminated(self.run_id, self._status)
        except Exception as error:
            self._error = error
            return False
        return True
