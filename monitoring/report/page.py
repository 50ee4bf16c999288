"""The report as one self-contained HTML file. Every text is escaped: tags, and control characters."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from monitoring.goodput import CATEGORIES, Goodput, goodput_of
from monitoring.report.charts import Curve, LineChart, short_number
from monitoring.report.losses import HeadLoss, last_loss, loss_table
from monitoring.report.models import ModelFacts
from monitoring.report.pictures import BORROWED, Picture, data_url
from motionmae.config import Config, config_yaml, flat
from motionmae.runs.events import FAULTS, SOURCE_PASSES, SOURCE_SAMPLES, Kind, Phase
from motionmae.runs.formatting import counted, describe_figures, duration, figures_of
from motionmae.runs.history import RunHistory
from motionmae.text import LINES, printable

_PHASES = (
    Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.DATA_WAIT, Phase.CHECKPOINT, Phase.MEMORY_COPY,
    Phase.VALIDATION, Phase.OTHER,
)  # fmt: skip
_CHARTS = {
    "lr": "Learning rate", "grad_norm": "Gradient norm, before clipping", "clips_per_second": "Clips a second",
    "step_seconds": "Seconds a step",
}  # fmt: skip
"""Keys of metrics rows that every report shows, with the titles of their charts."""


def render(
    histories: Sequence[RunHistory],
    pictures: Sequence[Picture] = (),
    losses: Sequence[HeadLoss] = (),
    notes: Sequence[str] = (),
    models: Sequence[ModelFacts] = (),
) -> str:
    """Return the HTML of a page about one run, or about several side by side, and about other weights."""
    colours = [f"var(--run{number % 7})" for number in range(len(histories))]
    configs = {history.name: flat(history.config.model_dump()) for history in histories if history.config}
    if len(configs) == 1 == len(histories):
        configs = {"default": flat(Config().model_dump()), **configs}
    return _TEMPLATES.get_template("report.html").render(
        title=" and ".join([*(history.name for history in histories), *(model.title for model in models)]),
        models=models,
        now=time.strftime("%Y-%m-%d %H:%M %Z"),
        notes=notes,
        histories=histories,
        colours=colours,
        goodputs=[goodput_of(history) for history in histories],
        losses=loss_table(losses),
        charts=_charts(histories, colours, losses) if histories else [],
        pictures=pictures,
        configs=configs,
        config_differences=_differences(configs),
    )


def _charts(
    histories: Sequence[RunHistory], colours: Sequence[str], losses: Sequence[HeadLoss]
) -> list[tuple[str, LineChart]]:
    """Return titles and charts over the steps. Each chart shows all runs."""
    charts = []
    loss_keys = dict.fromkeys(key for history in histories for key in history.losses)
    for key, title in [*((key, _loss_name(key)) for key in loss_keys), *_CHARTS.items()]:
        values = [[row.get(key) for row in history.rows] for history in histories]
        means = {loss.run: loss.predicting_the_mean for loss in losses if key == f"loss_{loss.head}"}
        charts.append((title, _chart(histories, colours, values, means, zero=key in _CHARTS)))
    charts += _validation_charts(histories, colours)
    with_peak = all(history.config and history.config.monitoring.peak_tflops for history in histories)
    title = "MFU" if with_peak else "GFLOP/s of the model (set monitoring.peak_tflops for MFU)"
    flops = [_flops(history, with_peak) for history in histories]
    return [*charts, (title, _chart(histories, colours, flops, {}, zero=True))]


_VALIDATION_CHARTS = {
    "loss": "Validation: loss", "top1": "Validation: top-1, per cent", "top5": "Validation: top-5, per cent",
    "explained_space": "Held out: explained variance, space head",
    "explained_time": "Held out: explained variance, time head", "knn": "Held out: k-NN, per cent",
}  # fmt: skip
"""Keys of validation events, with the titles of their charts."""


def _validation_charts(histories: Sequence[RunHistory], colours: Sequence[str]) -> list[tuple[str, LineChart]]:
    """Return the charts of the figures that a validation of any run has."""
    charts = []
    for key, title in _VALIDATION_CHARTS.items():
        curves = []
        for history, colour in zip(histories, colours, strict=True):
            rows = [row for row in history.validations if key in row]
            name = history.name if len(histories) > 1 else ""
            if rows:
                curves.append(Curve(name, [row["step"] for row in rows], [row[key] for row in rows], colour))
        if curves:
            charts.append((title, LineChart(curves)))
    return charts


def _confusions(history: RunHistory) -> list[tuple[str, str]]:
    """Return titles and data URLs of the confusion matrices of the best and the last validation."""
    steps = [row["step"] for row in history.validations[-1:]]
    if history.best_validation:
        steps.insert(0, history.best_validation["step"])
    found = []
    for step in dict.fromkeys(steps):
        picture = history.folder.validation / f"step-{step:08d}.png"
        if picture.is_file():
            found.append((f"Confusion matrix of step {step:,}", data_url(picture.read_bytes())))
    return found


def _chart(
    histories: Sequence[RunHistory],
    colours: Sequence[str],
    values: Sequence[Sequence[float | None]],
    means: Mapping[str, float | None],
    *,
    zero: bool,
) -> LineChart:
    """Return a chart with one curve of each run, and horizontal lines at the losses of predicting the mean."""
    curves, marks = [], []
    for history, colour, series in zip(histories, colours, values, strict=True):
        if not history.rows:
            continue
        steps = [row["step"] for row in history.rows]
        name = history.name if len(histories) > 1 else ""
        curves.append(Curve(name, steps, series, colour))
        if (mean := means.get(history.name)) is not None:
            ends = [steps[0], steps[-1]]
            curves.append(Curve(f"{name} predicting the mean".strip(), ends, [mean, mean], colour, dashed=True))
        marks += [(step, colour) for step in history.resumes]
    return LineChart(curves, marks, zero=zero)


def _flops(history: RunHistory, with_peak: bool) -> list[float | None]:
    """Return the MFU at each logged step, or the model's GFLOP/s if a config has no peak FLOP/s."""
    from motionmae.planning.flops import step_flops  # imports torch

    if history.config is None:
        return [None] * len(history.rows)
    flops, peak = step_flops(history.config).model, history.config.monitoring.peak_tflops * 1e12
    world = {row["attempt"]: row["world"] for row in history.of(Kind.START)}
    return [
        row["clips_per_second"] * flops / (peak * world.get(row["attempt"], 1) if with_peak else 1e9)
        for row in history.rows
    ]


def _phases(history: RunHistory) -> LineChart:
    rows = [row for row in history.rows if "forward_seconds" in row]
    steps = [row["step"] for row in rows]
    areas = []
    for phase in _PHASES:
        seconds = [row.get(f"{phase.value}_seconds") or 0.0 for row in rows]
        areas.append(Curve(phase.value.replace("_", " "), steps, seconds, f"var(--{phase.value})"))
    return LineChart(areas, stacked=True)


def _times(goodput: Goodput) -> dict[str, float]:
    times = {"productive": goodput.productive, **goodput.badput}
    return {category: max(seconds, 0.0) for category, seconds in times.items()}


def _attempt_intervals(history: RunHistory) -> list[tuple[float, float, str, str]]:
    """Return the run's intervals as (begin and end in seconds from the start, category, title)."""
    attempts = history.attempts
    first = attempts[0].began
    start = min([*(row["time"] for row in history.of(Kind.SUBMITTED)), first])
    intervals = [(start, first, "queue_wait", "in the queue")] if start < first else []
    for number, attempt in enumerate(attempts, 1):
        ready = attempt.ready or attempt.last_sign
        intervals.append((attempt.began, ready, "init", f"attempt {number}: starting"))
        steps = f"attempt {number}: steps {attempt.first_step} to {attempt.last_step}"
        intervals.append((ready, attempt.last_sign, "productive", steps))
    for attempt, after in pairwise(attempts):
        for since, until, category in attempt.idle_until(after.began):
            intervals.append((since, until, category, f"{attempt.end_text}; {CATEGORIES[category]}"))
    return [(begin - start, end - start, category, title) for begin, end, category, title in intervals]


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
        facts += _source_facts(rows[-1])
    corrupt = history.of(Kind.CORRUPT_SAMPLE)
    reasons = corrupt[-1]["reasons"] if corrupt else {}
    return facts + [(f"corrupt: {reason}", str(count)) for reason, count in reasons.items()]


def _source_facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the samples, share and passes of each source of a mixture, as of the last logged step."""
    samples = {
        key.removeprefix(SOURCE_SAMPLES): value or 0 for key, value in row.items() if key.startswith(SOURCE_SAMPLES)
    }
    total = sum(samples.values()) or 1
    return [
        (
            f"samples of {name}",
            f"{count:,} ({count / total:.1%}), {row.get(f'{SOURCE_PASSES}{name}') or 0:.2f} passes",
        )
        for name, count in samples.items()
    ]


def _differences(configs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return each config key whose values differ, followed by its values."""
    rows = []
    for key in next(iter(configs.values()), {}):
        values = [str(config.get(key)) for config in configs.values()]
        if key not in ("name", "output_dir", "data.shards") and len(set(values)) > 1:
            rows.append([key, *map(_shortened, values)])
    return rows


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
    finalize=lambda shown: printable(shown, LINES) if type(shown) is str else shown,  # markup is a subclass of str
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals |= {
    "attempt_intervals": _attempt_intervals, "borrowed": BORROWED, "clock": _clock, "config_yaml": config_yaml,
    "confusions": _confusions, "counted": counted, "describe_figures": describe_figures, "figures_of": figures_of,
    "duration": duration, "fault_titles": FAULTS, "kinds": Kind, "last_loss": last_loss, "loader_facts": _loader_facts,
    "loss_name": _loss_name, "mean": fmean, "median": median, "phases": _phases, "short_number": short_number,
    "shortened": _shortened, "times_of": _times, "titles": {"productive": "productive", **CATEGORIES},
}  # fmt: skip
