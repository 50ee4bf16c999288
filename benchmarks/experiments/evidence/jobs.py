"""What is trained: arms (how an encoder was pre-trained), uses (what it is put to), and the jobs that a row takes.

A run's name ends in a key of its resolved config and, for a classifier, of its encoder's run. So another budget is
another run, and what is found under a name was made by exactly these settings.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from motionmae.config import Config, flat, load_config
from motionmae.data.open_shards import load_manifest
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, current_rows, read_rows
from motionmae.training.state import config_as_json

SCRATCH = "scratch"
_SECTIONS = ("clip.", "model.", "mask.", "target.", "finetune.", "test.", "data.", "optim.")
_MATTERS = ("task", "seed", *_SECTIONS, "engine.precision")
_NO_STEP = ("optim.epochs=1", "optim.warmup_epochs=0", "optim.base_lr=1e-12", "optim.min_lr=0")


@dataclass(frozen=True)
class Arm:
    """A way to pre-train."""

    title: str
    """As the table calls it."""
    changes: tuple[str, ...]
    """What it changes of configs/evidence/pretrain."""
    main: bool = False
    """Whether it is one of the four that all seeds are spent on."""


ARMS = {
    SCRATCH: Arm("none: from scratch", _NO_STEP, main=True),  # a linear probe needs an encoder: an untrained one
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
    """What an encoder is put to; its recipe is configs/evidence/NAME."""

    title: str
    """As the table calls it."""
    shards: str
    """Which labelled videos it is trained on."""


SINGLE_FRAME = "single_frame"
USES = {
    "finetune10": Use("fine-tuned, 10 % of the labels", "train10"),
    "probe": Use("linear probe, all labels", "train"),
    "finetune100": Use("fine-tuned, all labels", "train"),
    SINGLE_FRAME: Use("a classifier of single frames, all labels", "train"),
}


@dataclass(frozen=True)
class Job:
    """One command: a pre-training, the training of a classifier, or its test."""

    config: Config
    """Resolved, its name with the key."""
    words: tuple[str, ...]
    """What follows ``python -m motionmae``."""
    needs: "Job | None" = None
    """What must be finished before."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.words[0]} {self.config.name}"

    @property
    def run(self) -> RunFolder:
        """The folder of its run."""
        return RunFolder.of(self.config.output_dir, self.config.name)

    @property
    def is_test(self) -> bool:
        """Whether it is the test of a run, not the run."""
        return self.words[0] == "test"

    def report(self) -> Path | None:
        """The figures that its run's test left."""
        return next(iter(self.run.path.glob("test/*/report.json")), None)

    def top1(self) -> float | None:
        """The result in percent, where the test has been made."""
        report = self.report()
        return json.loads(report.read_text())["top1"] if report else None

    def is_finished(self) -> bool:
        """Whether nothing of it is left to do."""
        if self.is_test:
            return self.report() is not None
        return any(row["kind"] == Kind.FINISH.value for row in read_rows(self.run.events))

    def steps(self) -> int:
        """Steps of its run."""
        return self.config.optim.epochs * (
            load_manifest(self.config.data.shards).samples // self.config.optim.global_batch_size
        )

    def steps_done(self) -> int:
        """Those taken, as far as the log tells."""
        rows = current_rows(self.run.metrics)
        return rows[-1]["step"] if rows else 0


@dataclass(frozen=True)
class Row:
    """One figure: an arm, a seed, a use."""

    arm: str
    seed: int
    use: str


@dataclass(frozen=True)
class Experiment:
    """Where it happens, and what is other than the configs say."""

    work: Path
    """Holds ``data`` and ``runs``."""
    changes: tuple[str, ...] = ()
    """Overrides of every run."""

    def shards(self, split: str) -> Path:
        """Folder of the shards of a split."""
        return self.work / "data" / split

    def jobs(self, row: Row) -> list[Job]:
        """The jobs that a row takes, in order; the last has its figure."""
        encoder = None
        if row.arm != SCRATCH or row.use == "probe":
            encoder = self._training("pretrain", f"{row.arm}_s{row.seed}", row.seed, "train", ARMS[row.arm].changes)
        init = f"finetune.init={encoder.run.path if encoder else SCRATCH}"
        validation = f"test.shards={self.shards('val')}"
        title = SINGLE_FRAME if row.use == SINGLE_FRAME else f"{row.arm}_{row.use}"
        shards = USES[row.use].shards
        training = self._training(row.use, f"{title}_s{row.seed}", row.seed, shards, (init, validation), encoder)
        test = Job(training.config, ("test", str(training.run.path)), training)
        return [job for job in (encoder, training, test) if job]

    def _training(
        self, name: str, title: str, seed: int, split: str, changes: Sequence[str], needs: Job | None = None
    ) -> Job:
        """The run of configs/evidence/NAME with some changes."""
        source = f"evidence/{name}"
        runs = f"output_dir={self.work / 'runs'}"
        # what makes the arm counts last: the untrained encoder stays so, whatever is changed for all runs
        words = [f"seed={seed}", runs, f"data.shards={self.shards(split)}", *self.changes, *changes]
        config = load_config(source, words)
        config = replace(config, name=f"{title}-{key_of(config)}")
        return Job(config, (config.task, "--config", source, f"name={config.name}", *words), needs)


def key_of(config: Config) -> str:
    """Eight digits of what the settings are that a result depends on.

    Folders count by their last name only, which for an encoder's run holds that run's key. Values that are the schema's
    own do not count, so that a setting that is added to the schema does not make another run of one made before.
    """
    named = replace(
        config,
        data=replace(config.data, shards=Path(config.data.shards).name),
        test=replace(config.test, shards=Path(config.test.shards).name),
        finetune=replace(config.finetune, init=Path(config.finetune.init).name),
    )
    values, defaults = (flat(config_as_json(each)) for each in (named, Config()))
    other = {key: value for key, value in values.items() if key.startswith(_MATTERS) and value != defaults[key]}
    return hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8]


def rows_of(arms: Sequence[str], seeds: Sequence[int] | None, uses: Sequence[str]) -> list[Row]:
    """The rows of some arms and uses, the most telling first.

    Args:
        arms: keys of ARMS.
        seeds: of every row; None: 0, 1, 2 for the main arms, 0 for the others.
        uses: keys of USES.
    """
    found = [Row(arm, seed, use) for arm in arms for use in uses for seed in _seeds(arm, seeds) if use != SINGLE_FRAME]
    if SINGLE_FRAME in uses:
        found += [Row(SCRATCH, seed, SINGLE_FRAME) for seed in seeds or (0,)]
    main = [use for use in USES if use != "finetune100"]
    return sorted(found, key=lambda row: (row.use not in main, not ARMS[row.arm].main, row.use == "probe", row.seed))


def _seeds(arm: str, seeds: Sequence[int] | None) -> Iterator[int]:
    yield from seeds if seeds is not None else range(3 if ARMS[arm].main else 1)
