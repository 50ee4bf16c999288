"""Monitoring of the training process: the rank's metrics sink and, on a node's first rank, the exporter process.

The command line and the Slurm job run training inside :func:`monitoring_sinks`. Failures are logged as warnings.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monitoring.exporter import END, END_AFTER_SCRAPE, Settings
from monitoring.rank_metrics import RankMetrics, flops_per_clip_of
from monitoring.rank_snapshots import clear, node_folder
from motionmae.config import Config
from motionmae.distributed.rendezvous import node_index, nodes_of_ranks, rank_environment
from motionmae.errors import UserError
from motionmae.process_signals import start_children_without_signals
from motionmae.runs.end_reason import EndReason, Requeue, classify_error
from motionmae.runs.events import Kind, Row, Sink
from motionmae.runs.git_revision import git_revision
from motionmae.runs.history import RunHistory
from motionmae.text import get_logger

logger = get_logger(__name__)


@contextmanager
def monitoring_sinks(config: Config) -> Iterator[list[Sink]]:
    """Monitor the training in the ``with`` block, which must pass the yielded sinks to the trainer."""
    if not config.monitoring.enabled:
        yield []
        return
    exporter = None
    sinks: list[Sink] = []
    last_command = _LastCommand()
    try:
        try:
            ranks = {key: int(value) for key, value in rank_environment(os.environ).items() if key != "MASTER_ADDR"}
            folder = node_folder(job_key(config, ranks["MASTER_PORT"], node_of(ranks)))
            if ranks["LOCAL_RANK"] == 0:
                clear(folder)
                exporter = start_exporter(config, ranks, folder)
            is_rank_zero = ranks["RANK"] == 0
            history = RunHistory(config.run_folder).events if is_rank_zero else []
            info = run_labels(config) if is_rank_zero else {}  # only rank 0 runs git
            metrics = RankMetrics(config, ranks["RANK"], folder, history, flops_per_clip_of(config), info)
            sinks = [last_command, metrics]
        except UserError:
            pass  # training raises the error again
        except Exception as error:
            logger.warning("this rank is not monitored (%s: %s); training continues", type(error).__name__, error)
        yield sinks
        last_command.command = last_command.command or END  # stopped before training began
    except BaseException as error:
        last_command.error(error)
        raise
    finally:
        if exporter:
            end_exporter(exporter, last_command.command, config.monitoring.linger_seconds)


class _LastCommand(Sink):
    """Sink that chooses the last command to the exporter. The command is empty after an unexpected end."""

    def __init__(self) -> None:
        self.command = ""

    def event(self, row: Row) -> None:
        if row["kind"] == Kind.FINISH:
            self.command = END_AFTER_SCRAPE
        elif row["kind"] == Kind.STOP and EndReason(row["reason"]).saved:
            self.command = END

    def error(self, error: BaseException) -> None:
        """Note the error that ends the attempt."""
        if isinstance(error, KeyboardInterrupt) or classify_error(error).requeue is Requeue.NEVER:
            self.command = self.command or END


def start_exporter(config: Config, ranks: dict[str, int], folder: Path) -> subprocess.Popen[str]:
    """Start the node's exporter process, which does not receive the job's signals."""
    settings = Settings(
        run=config.name,
        output_dir=Path(config.output_dir).resolve(),
        node=node_of(ranks),
        nodes=max(nodes_of_ranks(os.environ, ranks["WORLD_SIZE"])) + 1,
        snapshots=folder,
        monitoring=config.monitoring,
    )
    code = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
    with start_children_without_signals():
        exporter = subprocess.Popen(
            [sys.executable, "-m", "monitoring.exporter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
    _tell(exporter, settings.model_dump_json())
    return exporter


def _tell(exporter: subprocess.Popen[str], line: str) -> None:
    assert exporter.stdin is not None
    exporter.stdin.write(f"{line}\n")
    exporter.stdin.flush()


def end_exporter(exporter: subprocess.Popen[str], command: str, linger_seconds: float) -> None:
    """Send the last command and wait for the exporter to end; kill the exporter after a time limit."""
    assert exporter.stdin is not None
    with suppress(OSError):
        if command:
            _tell(exporter, command)
        else:
            exporter.stdin.close()
    try:
        exporter.wait(linger_seconds + 5)
    except subprocess.TimeoutExpired:
        exporter.kill()
        exporter.wait()
    with suppress(OSError):
        exporter.stdin.close()


def node_of(ranks: dict[str, int]) -> int:
    """Return the index of this node in the run."""
    return node_index(os.environ, ranks["RANK"], ranks["WORLD_SIZE"])


def job_key(config: Config, port: int, node: int) -> str:
    """Return a name of this job on this node that its ranks compute without communication."""
    address = os.environ.get("MASTER_ADDR", "")
    text = f"{Path(config.output_dir).resolve()}\0{config.name}\0{address}\0{port}\0{node}"
    return f"{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_labels(config: Config) -> dict[str, str]:
    """Return the labels of the metric run_info, except world_size."""
    settings = config.model_dump(exclude={"output_dir", "launch", "monitoring"})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return {"slurm_job_id": os.environ.get("SLURM_JOB_ID", ""), "git_sha": git_revision(), "config_hash": digest[:12]}
