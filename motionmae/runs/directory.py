"""Names of the files in a run folder."""

from contextlib import suppress
from itertools import chain
from pathlib import Path

from motionmae.errors import UserError
from motionmae.outputs import json_with
from motionmae.runs.events import read_rows


class RunFolder:
    """Paths in the run folder ``OUTPUT_DIR/NAME``, which may be absent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # resolved config of the newest attempt
        self.code = path / "code"  # code snapshot of the submission
        self.events = path / "events.jsonl"  # starts, checkpoints, preemptions and faults; one JSON object per line
        self.metrics = path / "metrics.jsonl"  # loss, throughput and times of logged steps; one JSON object per line
        self.attempts = path / "attempts.jsonl"  # nodes and failures of the attempts on Slurm
        self.lease = path / "lease.json"  # attempt that may write to the folder
        self.job = path / "job.json"  # job that was submitted last
        self.checkpoints = path / "checkpoints"  # checkpoints, see :mod:`motionmae.runs.checkpoint_store`
        self.encoder = path / "encoder.safetensors"  # frozen encoder of a probe, absent from the checkpoints
        self.logs = path / "logs"  # standard output and error of the job's processes
        self.trackers = path / "trackers.json"  # id of the run in W&B, MLflow and Trackio
        self.tensorboard = path / "tensorboard"
        self.validation = path / "validation"  # figures and confusion matrix of the newest and the best validation
        self.reconstructions = path / "reconstructions"  # pictures of reconstructed clips

    def refuse_foreign(self) -> None:
        """Raise a UserError if files have the names of a run's files, but the folder is not that of a run."""
        replaced = (self.config, self.encoder, self.lease, self.job, self.trackers)
        foreign = [path for path in replaced if path.is_symlink()]
        if not self._has_run():
            foreign += [path for path in (*replaced, self.events, self.metrics, self.attempts) if path.exists()]
        if foreign:
            raise UserError(
                f"{foreign[0]} is not a file of a run, and a run would overwrite it: choose another name=... or "
                "output_dir=..."
            )

    def _has_run(self) -> bool:
        """Return whether a run was submitted to this folder, or has begun in it."""
        for path, keys in ((self.lease, ("number", "id", "host")), (self.job, ("cluster", "job_id"))):
            with suppress(OSError, ValueError):
                if json_with(*keys)(path):
                    return True
        rows = chain(read_rows(self.events), read_rows(self.attempts))
        return any("time" in row and ("kind" in row or "what" in row) for row in rows)

    def create(self) -> None:
        """Create the folders that training fills, or raise a UserError."""
        try:
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be created ({error.strerror}): "
                "set output_dir=FOLDER to a folder that you can write to"
            ) from error
