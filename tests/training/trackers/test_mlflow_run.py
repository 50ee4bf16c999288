"""The thread that sends rows to MLflow, before a server that refuses, waits, or is full."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from motionmae.config import Config, flat
from motionmae.runs.directory import RunFolder
from motionmae.training.trackers import mlflow_run
from motionmae.training.trackers.mlflow_run import MLflow
from tests.monitoring.runs import metrics_row

mlflow = pytest.importorskip("mlflow")


class Server:
    """MLflow's client, whose server does what a test wants."""

    def __init__(self) -> None:
        self.uri = ""
        self.refusals = 0  # messages that are refused before one is taken
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()  # a message has come
        self.metrics: list[list[Any]] = []  # by message
        self.parameters: list[list[Any]] = []
        self.said: list[tuple[Any, ...]] = []
        self.history: list[Any] = []

    def client(self, tracking_uri: str) -> "Server":
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, *values: Any) -> str:
        self.said.append(("experiment", *values))
        return "7"

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        self.said.append(("run", experiment, run_name, tags))
        return SimpleNamespace(info=SimpleNamespace(run_id="new"))

    def update_run(self, *values: Any, **named: Any) -> None:
        self.said.append(("update", *values, named))

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        self.said.append(("history", run_id, key))
        return self.history

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.take()
        if metrics:
            self.metrics.append(list(metrics))
        else:
            self.parameters.append(list(params))

    def log_artifact(self, *values: Any) -> None:
        self.said.append(("artifact", *values))

    def set_terminated(self, *values: Any) -> None:
        self.take()
        self.said.append(("end", *values))

    def take(self) -> None:
        self.asked.set()
        assert self.answers.wait(60)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("refused")

    @property
    def steps(self) -> list[int]:
        return list(dict.fromkeys(metric.step for message in self.metrics for metric in message))


class Waits(threading.Event):
    """An event that keeps for how long it was waited, and does not wait."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer, self.pauses = answer, []  # type: ignore[var-annotated]

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        return self.answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(mlflow, "MlflowClient", server.client)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield server
    server.answers.set()


def tracker(tmp_path: Path, run_id: str = "old", **changes: Any) -> MLflow:
    config = Config(name="shown", output_dir=str(tmp_path / "runs")).updated(changes)
    return MLflow(config, RunFolder(tmp_path / "runs/shown"), run_id)


def row(step: int, **changes: Any) -> dict[str, Any]:
    return {**metrics_row(step, **changes), "attempt": "a", "time": 100.25 + step}


def test_a_new_run_has_its_config_in_messages_that_mlflow_takes(server: Server, tmp_path: Path):
    mixture = [{"path": f"{name * 200}/" * 17, "weight": 1.0} for name in "xy"]  # 6800 characters
    changes = {"data.shards": mixture, "log.mlflow_experiment": "videos"}
    opened = tracker(tmp_path, "", **changes)
    opened.close()
    folder = str((tmp_path / "runs/shown").resolve())
    assert server.uri == f"sqlite:///{tmp_path.resolve()}/runs/mlflow.db"
    assert server.said == [
        ("experiment", "videos", (tmp_path / "runs/mlartifacts").resolve().as_uri()),
        ("run", "7", "shown", {"motionmae.run": folder}),
        ("end", "new", "KILLED"),  # as if the process had been killed: nothing said how it ended
    ]
    found = {parameter.key: parameter.value for message in server.parameters for parameter in message}
    values = flat(Config(name="shown", output_dir=str(tmp_path / "runs")).updated(changes).model_dump(mode="json"))
    assert found.keys() == values.keys()
    assert [len(message) for message in server.parameters[:-1]] == [100] * (len(values) // 100)
    assert found["data.shards"] == str(values["data.shards"])[:6000]
    assert len(found["data.shards"]) == 6000
    assert (opened.run_id, opened.stored_step) == ("new", 0)


def test_a_resumed_run_knows_the_last_step_that_the_server_has(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    server.history = [SimpleNamespace(step=step) for step in (2, 9, 5)]
    opened = tracker(tmp_path)
    opened.close()
    assert (server.uri, opened.run_id, opened.stored_step) == ("http://server", "old", 9)
    assert server.said[:2] == [("update", "old", {"status": "RUNNING"}), ("history", "old", "epoch")]


def test_a_server_chooses_where_its_artifacts_lie(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    tracker(tmp_path, "").close()
    assert server.said[0] == ("experiment", "motionmae", None)


def test_what_a_user_has_set_is_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    tracker(tmp_path).close()
    assert mlflow_run.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert mlflow_run.os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"kind": "finish"}, "FINISHED"),
        ({"kind": "stop", "reason": "preempted"}, "SCHEDULED"),
        ({"kind": "stop", "reason": "stopped"}, "KILLED"),
        ({"kind": "stop", "reason": "terminated"}, "KILLED"),
        ({"kind": "stop", "reason": "crashed"}, "FAILED"),
        ({"kind": "stop", "reason": "user_error"}, "FAILED"),
        ({"kind": "checkpoint", "path": "step-4"}, "KILLED"),
    ],
)
def test_the_end_of_an_attempt_is_a_state_of_mlflow(event: dict[str, Any], status: str, server: Server, tmp_path: Path):
    opened = tracker(tmp_path)
    opened.event({"step": 4, **event})
    opened.close()
    assert server.said[-1] == ("end", "old", status)
    assert len(server.said) == 3


def test_rows_that_wait_go_in_messages_of_thirty_rows_and_a_thousand_values(server: Server, tmp_path: Path):
    opened = tracker(tmp_path)
    server.answers.clear()
    more = {f"source_samples/{number}": 1 for number in range(20)}
    opened.send(row(1, **more))
    assert server.asked.wait(60)
    for step in range(2, 36):
        opened.send(row(step, **more))
    server.answers.set()
    opened.close()
    each = len(server.metrics[0])
    assert each > 34
    assert [len(message) for message in server.metrics] == [each, 1000, 30 * each - 1000, 4 * each]
    assert server.steps == list(range(1, 36))
    first = {metric.key: (metric.value, metric.timestamp, metric.step) for metric in server.metrics[0]}
    assert first["loss"] == (2.0, 101_250, 1)
    assert first["source_samples/3"] == (1, 101_250, 1)
    assert not first.keys() & {"step", "time", "attempt"}


def test_pictures_are_artifacts_in_the_order_of_the_rows(server: Server, tmp_path: Path):
    opened = tracker(tmp_path)
    opened.event({"kind": "picture", "step": 3, "path": "a.png"})
    opened.event({"kind": "picture", "step": 4, "path": "b.png", "title": "confusion"})
    opened.event({"kind": "picture", "step": 5, "error": "no checkpoint"})
    opened.close()
    folder = tmp_path / "runs/shown"
    assert server.said[2:-1] == [
        ("artifact", "old", str(folder / "a.png"), "reconstruction"),
        ("artifact", "old", str(folder / "b.png"), "confusion"),
    ]


def test_refused_rows_are_sent_again_after_growing_pauses_and_reported_once(server: Server, tmp_path: Path):
    opened = tracker(tmp_path)
    opened._closing = Waits(answer=False)
    server.refusals = 8
    opened.send(row(1))
    assert opened._arrived.wait(60)
    assert opened._closing.pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    with pytest.raises(OSError, match=r"^ConnectionError: refused$"):
        opened.send(row(2))
    opened.send(row(3))
    opened.close()
    assert server.steps == [1, 2, 3]


def test_a_closing_run_does_not_wait_for_the_next_try(server: Server, tmp_path: Path):
    opened = tracker(tmp_path)
    opened._closing = Waits(answer=True)
    server.refusals = 8
    opened.send(row(1))
    opened._thread.join(60)
    with pytest.raises(OSError, match="refused"):
        opened.close()
    assert server.said[-1][0] == "history"  # the run is not ended: a later attempt continues it


def test_a_full_queue_takes_no_later_row(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_run, "_MOST_ROWS", 2)
    opened = tracker(tmp_path)
    server.answers.clear()
    opened.send(row(1))
    assert server.asked.wait(60)
    opened.send(row(2))
    opened.send(row(3))
    with pytest.raises(OSError, match=r"^2 rows wait, and the next attempt sends all others$"):
        opened.send(row(4))
    server.answers.set()
    assert opened._arrived.wait(60)
    with pytest.raises(OSError, match="2 rows wait"):  # it would hide the lost one
        opened.send(row(5))
    opened.close()
    assert server.steps == [1, 2, 3]


def test_training_waits_for_a_silent_server_once_until_it_answers(server: Server, tmp_path: Path):
    opened = tracker(tmp_path)
    opened._arrived = Waits(answer=True)
    opened._arrived.set()
    server.answers.clear()
    opened.metrics(row(1))
    assert server.asked.wait(60)
    opened._arrived.answer = False
    for step in (2, 3, 4):
        opened.metrics(row(step))
    assert opened._arrived.pauses == [5.0, 5.0]  # for the rows 1 and 2
    server.answers.set()
    while not opened._arrived.is_set():
        threading.Event().wait(0.01)
    opened._arrived.answer = True
    opened.metrics(row(5))  # all have arrived
    opened.metrics(row(6))
    assert opened._arrived.pauses == [5.0] * 3
    opened.close()
    assert server.steps == [1, 2, 3, 4, 5, 6]


def test_a_server_that_never_answers_does_not_hold_the_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mlflow_run, "_CLOSE_SECONDS", 0.05)
    opened = tracker(tmp_path)
    server.answers.clear()
    opened.send(row(1))
    with pytest.raises(OSError, match="MLflow does not answer; the next attempt sends the last rows"):
        opened.close()
    server.answers.set()
    opened._thread.join(60)
    assert server.said[-1] == ("end", "old", "KILLED")
