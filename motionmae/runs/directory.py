"""Names of the files in a run folder."""

from pathlib import Path

from motionmae.errors import UserError


class RunFolder:
    """Paths in the run folder ``OUTPUT_DIR/NAME``, which may be absent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # resolved config of the newest attempt
        self.code = path / "code"  # code snapshot of the submission
        self.events = path / "events.jsonl"  # starts, checkpoints, preemptions and faults; one JSON object per line
        self.metrics = path / "metrics.jsonl"  # loss, throughput and times of logged steps; one JSON object per line
        self.checkpoints = path / "checkpoints"  # checkpoints, see :mod:`motionmae.runs.checkpoint_store`
        self.encoder = path / "encoder.safetensors"  # frozen encoder of a probe, absent from the checkpoints
        self.logs = path / "logs"  # standard output and error of the job's processes
        self.tensorboard = path / "tensorboard"
        self.reconstructions = path / "reconstructions"  # pictures of reconstructed clips

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
