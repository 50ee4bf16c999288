"""The report as one self-contained HTML file. The template report.html escapes every text."""

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from monitoring.flops_per_clip import flops_per_clip_of
from monitoring.goodput import CATEGORIES, Goodput, goodput_of
from monitoring.report.charts import Curve, LineChart, short
from monitoring.report.losses import HeadLoss, loss_table
from monitoring.report.pictures import BORROWED, Picture
from motionmae.config import Config, config_yaml, flat
from motionmae.runs.events import Kind, Phase, Row
from motionmae.runs.formatting import duration
from motionmae.runs.history import RunHistory

FAULTS = {
    Kind.NONFINITE: "step skipped", Kind.CORRUPT_SAMPLE: "corrupt samples", Kind.CHECKPOINT_FAILED: "save failed",
    Kind.CHECKPOINT_DAMAGED: "damaged checkpoint skipped", Kind.HANG: "hung", Kind.ROLLBACK: "rolled back",
    Kind.FAILURE: "attempt failed",
}  # fmt: skip
_RUN_COLOURS = [f"var(--c{number})" for number in (0, 1, 2, 3, 4, 6, 8)]
_PHASE_COLOURS = {
    Phase.FORWARD: "var(--c0)", Phase.BACKWARD: "var(--c8)", Phase.OPTIMIZER: "var(--c2)",
    Phase.DATA_WAIT: "var(--c1)", Phase.CHECKPOINT: "var(--c4)", Phase.OTHER: "var(--c5)",
}  # fmt: skip
_CATEGORY_COLOURS = {
    "queue_wait": "var(--c6)", "init": "var(--c0)", "restore": "var(--c8)", "data_wait": "var(--c1)",
    "checkpoint_blocking": "var(--c4)", "lost_work": "var(--c3)", "downtime": "var(--c7)", "other": "var(--c5)",
}  # fmt: skip
_PRODUCTIVE = "var(--c2)"


class Slice(NamedTuple):
    """A share of a run's time."""

    name: str
    seconds: float
    colour: str
    share: float

    @property
    def percent(self) -> str:
        return f"{self.share:.1%}"


class Block(NamedTuple):
    """An interval on the line of a run's attempts, in seconds from the start."""

    begin: float
    end: float
    colour: str
    title: str


def render(
    histories: Sequence[RunHistory],
    pictures: Sequence[Picture] = (),
    losses: Sequence[HeadLoss] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the HTML of the page."""
    configs = {history.name: flat(history.config.model_dump()) for history in histories if history.config}
    if len(configs) == 1 == len(histories):
        configs = {"default": flat(Config().model_dump()), **configs}
    return _TEMPLATES.get_template("report.html").render(
        title=" and ".join(history.name for history in histories),
        now=time.strftime("%Y-%m-%d %H:%M %Z"),
        notes=notes,
        histories=histories,
        goodputs=[goodput_of(history) for history in histories],
        losses=loss_table(losses),
        charts=_charts(histories, losses),
        kinds=Kind,
        fault_titles=FAULTS,
        pictures=pictures,
        borrowed=BORROWED,
        configs=configs,
    )


def _charts(histories: Sequence[RunHistory], losses: Sequence[HeadLoss]) -> list[tuple[str, LineChart]]:
    """Return title and chart of losses, optimisation and speed over steps. Each chart shows all runs."""
    charts = []
    for key in dict.fromkeys(key for history in histories for key in history.losses):
        means = {loss.run: loss.predicting_the_mean for loss in losses if key == f"loss_{loss.head}"}
        charts.append((_loss_name(key), _chart(histories, _values(histories, key), means=means)))
    for title, key in {
        "Learning rate": "lr",
        "Gradient norm, before clipping": "grad_norm",
        "Clips a second": "clips_per_second",
        "Seconds a step": "step_seconds",
    }.items():
        charts.append((title, _chart(histories, _values(histories, key), zero=True)))
    with_peak = all(history.config and history.config.monitoring.peak_tflops for history in histories)
    title = "MFU" if with_peak else "GFLOP/s of the model (set monitoring.peak_tflops for MFU)"
    charts.append((title, _chart(histories, [_flops(history, with_peak) for history in histories], zero=True)))
    return charts


def _values(histories: Sequence[RunHistory], key: str) -> list[list[float | None]]:
    return [[row.get(key) for row in history.rows] for history in histories]


def _flops(history: RunHistory, with_peak: bool) -> list[float | None]:
    """Return the MFU at each logged step, or the model's GFLOP/s if a config has no peak FLOP/s."""
    if history.config is None:
        return [None] * len(history.rows)
    flops, peak = flops_per_clip_of(history.config).flops, history.config.monitoring.peak_tflops * 1e12
    world = {row["attempt"]: row["world"] for row in history.of(Kind.START)}
    return [
        row["clips_per_second"] * flops / (peak * world[row["attempt"]] if with_peak else 1e9) for row in history.rows
    ]


def _chart(
    histories: Sequence[RunHistory],
    values: Sequence[Sequence[float | None]],
    *,
    zero: bool = False,
    means: dict[str, float | None] | None = None,
) -> LineChart:
    """Return a chart with one curve of each run, and dashed horizontal lines at the losses of predicting the mean."""
    curves, marks = [], []
    for number, (history, series) in enumerate(zip(histories, values, strict=True)):
        if not history.rows:
            continue
        steps = [row["step"] for row in history.rows]
        name = history.name if len(histories) > 1 else ""
        curves.append(Curve(name, steps, series, _colour(number)))
        if (mean := (means or {}).get(history.name)) is not None:
            edges = [steps[0], steps[-1]]
            curves.append(Curve(f"{name} predicting the mean".strip(), edges, [mean, mean], _colour(number), True))
        marks += [(step, _colour(number)) for step in history.resumes]
    return LineChart(curves, marks, zero=zero)


def _phases(history: RunHistory) -> LineChart:
    rows = [row for row in history.rows if "forward_seconds" in row]
    steps = [row["step"] for row in rows]
    areas = [
        Curve(phase.value.replace("_", " "), steps, [row[f"{phase.value}_seconds"] for row in rows], colour)
        for phase, colour in _PHASE_COLOURS.items()
    ]
    return LineChart(areas, stacked=True)


def _slices(goodput: Goodput) -> list[Slice]:
    elapsed = goodput.elapsed or 1.0
    slices = [Slice("productive", goodput.productive, _PRODUCTIVE, goodput.productive / elapsed)]
    for category, seconds in goodput.badput.items():
        known = max(seconds, 0.0)
        slices.append(Slice(CATEGORIES[category], known, _CATEGORY_COLOURS[category], known / elapsed))
    return slices


def _attempt_blocks(history: RunHistory) -> list[Block]:
    attempts = history.attempts
    if not attempts:
        return []
    submitted = [row["time"] for row in history.of(Kind.SUBMITTED)]
    start = min([*submitted[:1], attempts[0].began])
    blocks = []
    if start < attempts[0].began:
        blocks.append(Block(start, attempts[0].began, _CATEGORY_COLOURS["queue_wait"], "in the queue"))
    for number, attempt in enumerate(attempts, 1):
        ready = attempt.ready or attempt.last_sign
        blocks.append(Block(attempt.began, ready, _CATEGORY_COLOURS["init"], f"attempt {number}: starting"))
        steps = f"attempt {number}: steps {attempt.first_step} to {attempt.last_step}"
        blocks.append(Block(ready, attempt.last_sign, _PRODUCTIVE, steps))
    for attempt, after in pairwise(attempts):
        for since, until, category in attempt.idle_until(after.began):
            title = f"{attempt.end_text}; {CATEGORIES[category]}"
            blocks.append(Block(since, until, _CATEGORY_COLOURS[category], title))
    return [block._replace(begin=block.begin - start, end=block.end - start) for block in blocks]


def _loader_facts(history: RunHistory) -> list[tuple[str, str]]:
    facts = []
    if rows := [row for row in history.rows if "loader_ready" in row]:
        waits = sorted(row["data_wait_seconds"] / max(row["step_seconds"], 1e-9) for row in rows)
        capacity = history.config.data.prefetch if history.config else 0
        facts = [
            ("waiting for data, mean over steps", f"{fmean(waits):.1%}"),
            ("waiting for data, 95th percentile", f"{waits[int(0.95 * (len(waits) - 1))]:.1%}"),
            ("micro-batches ready, mean", f"{fmean(row['loader_ready'] for row in rows):.1f} of {capacity}"),
            ("logged steps with none ready", f"{fmean(row['loader_ready'] == 0 for row in rows):.1%}"),
        ]
    corrupt = history.of(Kind.CORRUPT_SAMPLE)
    reasons = corrupt[-1]["reasons"] if corrupt else {}
    return facts + [(f"corrupt: {reason}", str(count)) for reason, count in reasons.items()]


def _last_mean(history: RunHistory, key: str) -> float:
    """Return the mean of the last five values, because the loss of one step is noisy."""
    return fmean([row[key] for row in history.rows if row.get(key) is not None][-5:])


def _fault_details(row: Row) -> str:
    keys = ("reason", "cause", "node", "ranks", "samples", "reasons", "error", "path")
    return ", ".join(f"{key} {_shortened(row[key])}" for key in keys if row.get(key))


def _config_differences(configs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return each key whose values differ, and its values."""
    rows = []
    for key in next(iter(configs.values())):
        values = [str(config.get(key)) for config in configs.values()]
        if key not in ("name", "output_dir", "data.shards") and len(set(values)) > 1:
            rows.append([key, *map(_shortened, values)])
    return rows


def _colour(number: int) -> str:
    return _RUN_COLOURS[number % len(_RUN_COLOURS)]


def _loss_name(key: str) -> str:
    head = key.removeprefix("loss").strip("_")
    return f"loss, {head} head" if head in ("space", "time") else f"loss {head}".strip()


def _clock(moment: float) -> str:
    return time.strftime("%b %d %H:%M:%S", time.localtime(moment))


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "attempt_blocks": _attempt_blocks,
    "clock": _clock,
    "colour": _colour,
    "config_differences": _config_differences,
    "config_yaml": config_yaml,
    "duration": duration,
    "fault_details": _fault_details,
    "last_mean": _last_mean,
    "loader_facts": _loader_facts,
    "loss_name": _loss_name,
    "mean": fmean,
    "median": median,
    "phases": _phases,
    "short": short,
    "slices": _slices,
}
