"""Trials of the experiment: arms (ways to pre-train an encoder), uses (ways to use it), and their jobs.

The name of a run ends in a hash of its settings; the hash of a classifier includes its encoder's run. A run with other
settings therefore has another name, and an existing run was made with exactly these settings.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from motionmae.config import Config, flat, load_config
from motionmae.config.resume import RESULT_KEYS
from motionmae.data.open_shards import load_sources
from motionmae.runs.directory import RunFolder
from motionmae.runs.history import RunHistory

SCRATCH = "scratch"
_NO_STEP = ("optim.epochs=1", "optim.warmup_epochs=0", "optim.base_lr=1e-12", "optim.min_lr=0")


@dataclass(frozen=True)
class Arm:
    """Way to pre-train an encoder."""

    title: str  # in the table
    changes: tuple[str, ...]  # overrides of configs/evidence/pretrain
    main: bool = False  # whether the arm is run with three seeds


ARMS = {
    SCRATCH: Arm("none: from scratch", _NO_STEP, main=True),  # a linear probe uses the untrained encoder
    "frame": Arm("frame", ("target.kind=frame",), main=True),
    "motion": Arm("motion", ("target.kind=motion",), main=True),
    "both": Arm("frame + motion (MotionMAE)", ("target.kind=both",), main=True),
    "motion_signed": Arm("motion, signed", ("target.kind=motion", "target.motion_sign=signed")),
    "both_signed": Arm("frame + motion, signed", ("target.kind=both", "target.motion_sign=signed")),
    "frame_tube": Arm("frame, tube mask (as VideoMAE)", ("target.kind=frame", "mask.kind=tube")),
    "both_tube": Arm("frame + motion, tube mask", ("target.kind=both", "mask.kind=tube")),
}


@dataclass(frozen=True)
class Use:
    """Way to use an encoder by the recipe configs/evidence/NAME."""

    title: str  # in the table
    shards: str  # split of the labelled training videos


SINGLE_FRAME = "single_frame"
USES = {
    "finetune10": Use("fine-tuned, 10 % of the labels", "train10"),
    "probe": Use("linear probe, all labels", "train"),
    "finetune100": Use("fine-tuned, all labels", "train"),
    SINGLE_FRAME: Use("a classifier of single frames, all labels", "train"),
}


@dataclass(frozen=True)
class Job:
    """Command: a pre-training, the training of a classifier, or the test of a classifier."""

    config: Config  # resolved; its name ends in the hash
    argv: tuple[str, ...]  # arguments of `motionmae`
    needs: "Job | None" = None  # job that must finish first

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.argv[0]} {self.config.name}"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.config.run_folder)

    @property
    def is_test(self) -> bool:
        """Whether the job is a test."""
        return self.argv[0] == "test"

    def report(self) -> Path | None:
        """Return the path of the test's report; None before the test."""
        return next(iter(self.run.path.glob("test/*/report.json")), None)

    def top1(self) -> float | None:
        """Return top-1 in percent; None before the test."""
        report = self.report()
        return json.loads(report.read_text())["top1"] if report else None

    def is_finished(self) -> bool:
        if self.is_test:
            return self.report() is not None
        return RunHistory(self.run.path).finished_step is not None

    def steps(self) -> int:
        """Return the number of steps of the whole run."""
        samples = load_sources(self.config.data).epoch_samples
        return self.config.optim.epochs * (samples // self.config.optim.global_batch_size)

    def steps_done(self) -> int:
        """Return the number of steps taken, according to the log."""
        rows = RunHistory(self.run.path).rows
        return rows[-1]["step"] if rows else 0


@dataclass(frozen=True)
class Trial:
    """One result of the table."""

    arm: str
    seed: int
    use: str


@dataclass(frozen=True)
class Experiment:
    """Folder and overrides of the experiment."""

    work: Path  # contains the folders data and runs
    changes: tuple[str, ...] = ()  # overrides of every run

    def shards(self, split: str) -> Path:
        return self.work / "data" / split

    def jobs(self, trial: Trial) -> list[Job]:
        """Return the jobs of a trial in order. The last job gives the result."""
        encoder = None
        if trial.arm != SCRATCH or trial.use == "probe":
            encoder = self._training(
                "pretrain", f"{trial.arm}_s{trial.seed}", trial.seed, "train", ARMS[trial.arm].changes
            )
        init = f"finetune.init={encoder.run.path if encoder else SCRATCH}"
        validation = f"test.shards={self.shards('val')}"
        title = SINGLE_FRAME if trial.use == SINGLE_FRAME else f"{trial.arm}_{trial.use}"
        shards = USES[trial.use].shards
        training = self._training(trial.use, f"{title}_s{trial.seed}", trial.seed, shards, (init, validation), encoder)
        test = Job(training.config, ("test", str(training.run.path)), training)
        return [job for job in (encoder, training, test) if job]

    def _training(
        self, name: str, title: str, seed: int, split: str, changes: Sequence[str], needs: Job | None = None
    ) -> Job:
        """Return a training job of configs/evidence/NAME with overrides."""
        source = f"evidence/{name}"
        runs = f"output_dir={self.work / 'runs'}"
        # overrides of the arm win: the untrained encoder stays untrained, whatever is changed for all runs
        argv = [f"seed={seed}", runs, f"data.shards={self.shards(split)}", *self.changes, *changes]
        config = load_config(source, argv)
        config = config.updated({"name": f"{title}-{key_of(config)}"})
        return Job(config, (config.task, "--config", source, f"name={config.name}", *argv), needs)


def key_of(config: Config) -> str:
    """Hash the settings that a result depends on, in eight digits.

    Only the last name of a folder counts, which contains a hash if the folder is the run of an encoder. Default values
    do not count: a setting that is added to the schema later does not rename existing runs.
    """
    named = config.updated(
        {
            "data.shards": Path(config.data.location).name,
            "test.shards": Path(config.test.shards).name,
            "finetune.init": Path(config.finetune.init).name,
        }
    )
    values, defaults = (flat(each.model_dump(mode="json")) for each in (named, Config()))
    other = {key: value for key, value in values.items() if key in RESULT_KEYS and value != defaults[key]}
    return hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8]


def trials_of(arms: Sequence[str], seeds: Sequence[int] | None, uses: Sequence[str]) -> list[Trial]:
    """Return the trials of some arms and uses, the most informative first.

    By default, the ``seeds`` are 0, 1 and 2 for the main arms, and 0 for the other arms.
    """
    found = [
        Trial(arm, seed, use) for arm in arms for use in uses for seed in _seeds(arm, seeds) if use != SINGLE_FRAME
    ]
    if SINGLE_FRAME in uses:
        found += [Trial(SCRATCH, seed, SINGLE_FRAME) for seed in seeds or (0,)]
    main = [use for use in USES if use != "finetune100"]
    return sorted(
        found, key=lambda trial: (trial.use not in main, not ARMS[trial.arm].main, trial.use == "probe", trial.seed)
    )


def _seeds(arm: str, seeds: Sequence[int] | None) -> Iterator[int]:
    yield from seeds if seeds is not None else range(3 if ARMS[arm].main else 1)
