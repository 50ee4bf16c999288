"""Names of the files in a run directory."""

from pathlib import Path

from motionmae.errors import UserError


class RunFolder:
    """The run directory ``OUTPUT_DIR/NAME``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        """Resolved config of the newest attempt."""
        self.code = path / "code"
        """Code snapshot of the submission."""
        self.events = path / "events.jsonl"
        """Starts, checkpoints, preemptions and faults; one JSON object per line."""
        self.metrics = path / "metrics.jsonl"
        """Loss, throughput and times of logged steps; one JSON object per line."""
        self.checkpoints = path / "checkpoints"
        """Checkpoints, see :mod:`motionmae.runs.checkpoint_store`."""
        self.encoder = path / "encoder.safetensors"
        """Frozen encoder of a probe; the probe's checkpoints do not contain the encoder."""
        self.logs = path / "logs"
        """Standard output and error of the job's processes."""
        self.tensorboard = path / "tensorboard"
        self.reconstructions = path / "reconstructions"
        """Pictures of :mod:`motionmae.training.callbacks.reconstructions`."""

    @classmethod
    def of(cls, runs: str | Path, name: str) -> "RunFolder":
        """Return the directory of run ``name`` in ``runs``. The directory may be absent."""
        return cls(Path(runs) / name)

    def create(self) -> None:
        """Create the directory and the subfolders that training fills.

        Raises:
            UserError: if the directory or a folder cannot be created.
        """
        try:
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run directory {self.path} cannot be created ({error.strerror}): "
                "set output_dir=FOLDER to a folder that you can write to"
            ) from error
