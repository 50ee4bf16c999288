"""A rank's part in being seen: its sink and, on a node's first rank, the exporter. What fails here is a warning.

Put around training by what starts it (the command line, the Slurm job); training itself knows of sinks only.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monitoring.exporter import END, END_AFTER_SCRAPE, Settings
from monitoring.flops_per_clip import flops_per_clip_of
from monitoring.rank_metrics import RankMetrics
from monitoring.rank_snapshots import clear, node_folder
from motionmae.config import Config
from motionmae.distributed.rendezvous import rank_environment
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, Requeue, classify_error
from motionmae.runs.events import Kind, Row, Sink, read_rows
from motionmae.runs.git_revision import git_revision

logger = logging.getLogger(__name__)

_KEPT_AWAY = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2}
"""Signals that schedulers and terminals send to every process of a job; the exporter ends with its trainer instead."""


@contextmanager
def monitored(config: Config) -> Iterator[list[Sink]]:
    """Be seen while the ``with`` block trains; yields the sinks that training should tell."""
    if not config.monitoring.enabled:
        yield []
        return
    exporter = None
    sinks: list[Sink] = []
    ending = _Ending()
    try:
        try:
            place = {key: int(value) for key, value in rank_environment(os.environ).items() if key != "MASTER_ADDR"}
            folder = node_folder(job_key(config, place["MASTER_PORT"], node_of(place)))
            if place["LOCAL_RANK"] == 0:
                clear(folder)
                exporter = start_exporter(config, place, folder)
            first = place["RANK"] == 0
            history = list(read_rows(RunFolder.of(config.output_dir, config.name).events)) if first else []
            info = run_labels(config) if first else {}  # hundreds of ranks need not ask git
            sinks = [ending, RankMetrics(config, place["RANK"], folder, history, flops_per_clip_of(config), info)]
        except UserError:
            pass  # training meets it as well, and says it
        except Exception as error:
            logger.warning("this rank is not monitored (%s: %s); training goes on", type(error).__name__, error)
        yield sinks
    except BaseException as error:
        ending.error(error)
        raise
    finally:
        if exporter:
            end_exporter(exporter, ending.word, config.monitoring.linger_seconds)


class _Ending:
    """Remembers how the attempt ended."""

    def __init__(self) -> None:
        self.word = ""

    def event(self, row: Row) -> None:
        """Note an end in order."""
        if row["kind"] == Kind.FINISH.value:
            self.word = END_AFTER_SCRAPE
        elif row["kind"] == Kind.STOP.value and EndReason(row["reason"]).saved:
            self.word = END

    def error(self, error: BaseException) -> None:
        """Note an end that somebody knows of; after any other error the exporter goes as if the trainer had died."""
        if isinstance(error, KeyboardInterrupt) or classify_error(error).requeue is Requeue.NEVER:
            self.word = self.word or END

    def metrics(self, row: Row) -> None:
        """Not of interest."""

    def close(self) -> None:
        """Nothing is held."""


def start_exporter(config: Config, place: dict[str, int], folder: Path) -> subprocess.Popen[str]:
    """Start the node's exporter, out of reach of the job's signals."""
    monitoring = config.monitoring
    runs = Path(config.output_dir).resolve()
    settings = Settings(
        run=config.name,
        run_folder=str(runs / config.name),
        node=node_of(place),
        nodes=-(-place["WORLD_SIZE"] // ranks_per_node(place)),
        snapshots=str(folder),
        discovery=str(Path(monitoring.discovery).resolve() if monitoring.discovery else runs / ".sd"),
        address=monitoring.address,
        port=monitoring.port,
        ports=monitoring.ports,
        linger_seconds=monitoring.linger_seconds,
        tls_certificate=monitoring.tls_certificate,
        tls_key=monitoring.tls_key,
    )
    code = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_AWAY)  # inherited, so there is no moment without
    try:
        exporter = subprocess.Popen(
            [sys.executable, "-m", "monitoring.exporter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert exporter.stdin is not None
    exporter.stdin.write(settings.as_line())
    exporter.stdin.flush()
    return exporter


def end_exporter(exporter: subprocess.Popen[str], word: str, linger_seconds: float) -> None:
    """Say the word and wait for the exporter to end; it is killed if it does not."""
    assert exporter.stdin is not None
    with suppress(OSError):
        if word:
            exporter.stdin.write(word + "\n")
            exporter.stdin.flush()
        else:
            exporter.stdin.close()
    try:
        exporter.wait(linger_seconds + 5)
    except subprocess.TimeoutExpired:
        exporter.kill()
        exporter.wait()
    with suppress(OSError):
        exporter.stdin.close()


def ranks_per_node(place: dict[str, int]) -> int:
    """Ranks of this node, as torchrun and Slurm say; all of them if nobody does."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        count = os.environ.get(name, "").partition("(")[0]
        if count.isdigit() and int(count) > 0:
            return int(count)
    return place["WORLD_SIZE"]


def node_of(place: dict[str, int]) -> int:
    """Number of this node in the run."""
    return place["RANK"] // ranks_per_node(place)


def job_key(config: Config, port: int, node: int) -> str:
    """A name for this job on this node that all of its ranks find by themselves."""
    address = os.environ.get("MASTER_ADDR", "")
    text = f"{Path(config.output_dir).resolve()}\0{config.name}\0{address}\0{port}\0{node}"
    return f"{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_labels(config: Config) -> dict[str, str]:
    """Labels of run_info."""
    settings = {
        key: value for key, value in config.model_dump().items() if key not in ("output_dir", "launch", "monitoring")
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return {
        "slurm_job_id": os.environ.get("SLURM_JOB_ID", ""),
        "git_sha": git_revision(),
        "config_hash": digest[:12],
    }
