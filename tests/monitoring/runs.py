"""What ranks announce, row by row as training writes it, and an exporter around it; no torch, so in milliseconds."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitoring.exporter import Settings
from monitoring.rank_metrics import FlopsPerClip, RankMetrics
from motionmae.config import Config, load_config, save_config
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, JsonLines, Kind, LineFile, Phase, Row
from motionmae.runs.history import RunHistory

ROOT = Path(__file__).resolve().parents[2]
FAKE_NVML = Path(__file__).with_name("fake_nvml")
INFO = {"slurm_job_id": "7", "git_sha": "abc", "config_hash": "def"}


def label_of(runs: Path, name: str = "demo") -> str:
    """Return the label of a run: its name, and the first digits of the SHA-256 of its folder."""
    return f"{name}-{hashlib.sha256(str((runs / name).resolve()).encode()).hexdigest()[:6]}"


def config_of(runs: Path, **monitoring: Any) -> Config:
    changes = {"peak_tflops": 1, **monitoring}
    return load_config("demo", [f"output_dir={runs}", *(f"monitoring.{key}={value}" for key, value in changes.items())])


def metrics_row(step: int, steps: int = 1, seconds: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A row of metrics.jsonl about ``steps`` steps that each took ``seconds``, half of them in the forward pass."""
    phases = {f"{phase.value}_seconds": 0.0 for phase in Phase}
    phases |= {"forward_seconds": seconds / 2, "backward_seconds": seconds / 4, "optimizer_seconds": seconds / 8}
    return {
        "step": step, "epoch": step / 10, "loss": 2 / step, "loss_space": 1 / step, "loss_time": 1 / step, "lr": 1e-3,
        "grad_norm": 0.5, "steps": steps, "step_seconds": seconds, "step_seconds_max": seconds, **phases,
        "data_wait_seconds": seconds / 8, "clips_per_second": 8 / seconds, "straggler_score": 1.0, "slowest_rank": 0,
        "slowest_score": 1.0, "loader_ready": 3, "corrupt_samples": 0, "skipped_steps": 0, "memory_copy_step": 0,
        **changes,
    }  # fmt: skip


def history_of(folder: Path, events: Sequence[Row] = (), rows: Sequence[Row] = (), *settings: str) -> RunHistory:
    """A run of one attempt ``a`` on two ranks, which began at second 100, and what it wrote."""
    run = RunFolder(folder)
    run.create()
    start = {"kind": "start", "step": 0, "time": 100.0, "world": 2, "hosts": ["n"]}
    for file, content in ((LineFile(run.events), [start, *events]), (LineFile(run.metrics), rows)):
        for row in content:
            file.append({"attempt": "a", "time": 110.0, **row})
        file.close()
    if settings:
        save_config(load_config("demo", list(settings)), run.config)
    return RunHistory(folder)


class FedRun:
    """A run of some ranks on this node, whose event logs a test feeds as the training loop does."""

    def __init__(self, config: Config, folder: Path, attempt: str = "a", ranks: int = 1) -> None:
        self.folder = RunFolder(config.run_folder)
        self.folder.create()
        self.logs = []
        for rank in range(ranks):
            files = [JsonLines(self.folder.events, self.folder.metrics)] if rank == 0 else []
            history = [json.loads(line) for line in self.folder.events.read_text().splitlines()] if rank == 0 else []
            sink = RankMetrics(config, rank, folder, history, FlopsPerClip(flops=10**9, tokens=100), INFO)
            self.logs.append(EventLog(attempt, [*files, sink]))
        self.event(Kind.START, 0, world=ranks, age=0.0, hosts=["here"])

    def event(self, kind: Kind, step: int, **fields: Any) -> None:
        for log in self.logs:
            log.event(kind, step, **fields)

    def metrics(self, step: int, **changes: Any) -> None:
        for log in self.logs:
            log.metrics(metrics_row(step, **changes))


def settings_of(config: Config, folder: Path, node: int = 0, nodes: int = 1) -> Settings:
    return Settings(
        run=config.name, output_dir=Path(config.output_dir), node=node, nodes=nodes, snapshots=folder,
        monitoring=config.monitoring,
    )  # fmt: skip


class Exporter:
    """An exporter process with the fake GPUs; use as a context manager."""

    def __init__(self, settings: Settings, log: Path) -> None:
        path = os.pathsep.join([str(FAKE_NVML), str(ROOT)])
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monitoring.exporter"],
                stdin=subprocess.PIPE, stderr=file, text=True, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        assert self.process.stdin is not None
        self.stdin = self.process.stdin
        self.stdin.write(settings.model_dump_json() + "\n")
        self.stdin.flush()
        self.settings, self.log = settings, log

    def address(self) -> str:
        """Wait for the discovery file and return the target in it."""
        path = self.settings.target_file
        end = time.monotonic() + 60
        while not path.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "no discovery file"
            time.sleep(0.02)
        return json.loads(path.read_text())[0]["targets"][0]

    def __enter__(self) -> "Exporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()


def snapshot_folder(name: str, tmp: Path) -> Path:
    folder = tmp / f"snapshots-{name}"
    folder.mkdir()
    return folder
