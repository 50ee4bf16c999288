"""The points of a run in W&B, MLflow and Trackio, by each tool's own reader."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from motionmae.config import Config

Rows = list[tuple[int, float]]


def wandb_records(file: Path) -> Iterator[Any]:
    """Read the records of an offline run from a LevelDB log: blocks of 32 KiB with (checksum, length, kind, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, position, parts = file.read_bytes(), 32768, 7, b""  # W&B's header has seven bytes
    while position + 7 <= len(content):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_files(config: Config) -> list[Path]:
    return sorted(config.run_folder.glob("wandb/offline-run-*/*.wandb"))


def wandb_values(config: Config) -> list[dict[str, Any]]:
    rows = []
    for file in wandb_files(config):
        for record in wandb_records(file):
            if record.HasField("history"):
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def wandb_rows(config: Config, key: str = "loss") -> Rows:
    """The points of all attempts, which share a run id; W&B joins them by _step."""
    assert len({file.stem for file in wandb_files(config)}) == 1
    rows = [row for row in wandb_values(config) if key in row]
    assert all(row["_step"] == row["step"] for row in rows)
    return [(row["step"], row[key]) for row in rows]


def mlflow_rows(config: Config, key: str = "loss") -> Rows:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.output_dir}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("motionmae").experiment_id])
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def trackio_rows(config: Config, key: str = "loss") -> Rows:
    name = json.loads((config.run_folder / "trackers.json").read_text())["trackio"]
    command = [sys.executable, "-m", "trackio.cli", "get", "metric", "--project", "motionmae", "--run", name]
    read = subprocess.run([*command, "--metric", key, "--json"], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    return [(row["step"], row["value"]) for row in json.loads(read.stdout)["values"]]


READERS: dict[str, Callable[..., Rows]] = {"wandb": wandb_rows, "mlflow": mlflow_rows, "trackio": trackio_rows}
