"""The folder of a run and the names in it."""

from pathlib import Path

from motionmae.errors import UserError


class RunFolder:
    """``RUNS/NAME``: everything a run leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The folder."""
        self.config = path / "config.yaml"
        """The resolved config of the newest attempt."""
        self.code = path / "code"
        """The code as submitted."""
        self.events = path / "events.jsonl"
        """Starts, checkpoints, preemptions, faults; one JSON object a line."""
        self.metrics = path / "metrics.jsonl"
        """Loss, rates and times; one JSON object every few steps."""
        self.checkpoints = path / "checkpoints"
        """See :mod:`motionmae.runs.checkpoint_store`."""
        self.encoder = path / "encoder.safetensors"
        """A probe's frozen encoder, which its checkpoints leave out."""
        self.logs = path / "logs"
        """Standard output and error of the job's processes."""
        self.tensorboard = path / "tensorboard"
        """The metrics for TensorBoard."""
        self.reconstructions = path / "reconstructions"
        """What the heads rebuild at some of its steps, see :mod:`motionmae.training.callbacks.reconstructions`."""

    @classmethod
    def of(cls, runs: str | Path, name: str) -> "RunFolder":
        """The folder of run ``name`` below ``runs``, whether it exists or not."""
        return cls(Path(runs) / name)

    def create(self) -> None:
        """Make the folder and those below it that training fills.

        Raises:
            UserError: if they cannot be made.
        """
        try:
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be made ({error.strerror}): set output_dir=FOLDER to one you can write to"
            ) from error
