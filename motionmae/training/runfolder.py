"""The folder of a run and the names in it."""

from dataclasses import dataclass
from pathlib import Path

from motionmae.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """``RUNS/NAME``: everything a run leaves behind.

    ::

        config.yaml      the resolved config of the newest incarnation
        code/            the code as submitted
        events.jsonl     starts, checkpoints, preemptions, faults
        metrics.jsonl    loss, rates and times, one row every few steps
        checkpoints/     see motionmae.training.checkpoint_store
        logs/            standard output and error of the job
        tensorboard/     the metrics for TensorBoard
    """

    path: Path

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
                f"the run folder {self.path} cannot be made ({error.strerror}): set runs=FOLDER to one you can write to"
            ) from error

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def code(self) -> Path:
        """Snapshot of the code."""
        return self.path / "code"

    @property
    def events(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """How training went, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Output of the job's processes."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"
