"""Sections of the report. Each is a function from run histories to HTML."""

import time
from collections.abc import Container, Sequence
from html import escape
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from monitoring.flops_per_clip import flops_per_clip_of
from monitoring.goodput import goodput_of
from monitoring.report.charts import Curve, Slice, donut, line_chart, strip
from monitoring.report.pictures import BORROWED, Picture
from motionmae.config import Config, config_yaml, flat
from motionmae.runs.events import Kind, Phase, Row
from motionmae.runs.formatting import duration
from motionmae.runs.history import RunHistory

RUN_COLOURS = [f"var(--c{number})" for number in (0, 1, 2, 3, 4, 6, 8)]
PHASE_COLOURS = {
    Phase.FORWARD: "var(--c0)", Phase.BACKWARD: "var(--c8)", Phase.OPTIMIZER: "var(--c2)",
    Phase.DATA_WAIT: "var(--c1)", Phase.CHECKPOINT: "var(--c4)", Phase.OTHER: "var(--c5)",
}  # fmt: skip
CATEGORIES = {
    "queue_wait": ("waiting in the queue", "var(--c6)"), "init": ("starting", "var(--c0)"),
    "restore": ("restoring", "var(--c8)"), "data_wait": ("waiting for data", "var(--c1)"),
    "checkpoint_blocking": ("saving", "var(--c4)"), "lost_work": ("work done again", "var(--c3)"),
    "downtime": ("down", "var(--c7)"), "other": ("other", "var(--c5)"),
}  # fmt: skip
"""Title and colour of each badput category."""
_PRODUCTIVE = "var(--c2)"
_FAULTS = {
    Kind.NONFINITE: "step skipped", Kind.CORRUPT_SAMPLE: "corrupt samples", Kind.CHECKPOINT_FAILED: "save failed",
    Kind.CHECKPOINT_DAMAGED: "damaged checkpoint skipped", Kind.HANG: "hung", Kind.ROLLBACK: "rolled back",
    Kind.FAILURE: "attempt failed",
}  # fmt: skip


def summary(history: RunHistory, number: int) -> str:
    """Render title and key figures of a run."""
    rows, goodput = history.rows, goodput_of(history)
    facts = [(history.state, "state")]
    if rows:
        total = history.total_steps
        facts.append((f"{rows[-1]['step']:,}" + (f" / {total:,}" if total else ""), "steps"))
        facts.append((f"{rows[-1]['epoch']:.1f}", "epochs"))
        facts += [(f"{_last(rows, key):.4f}", _loss_name(key)) for key in history.losses]
        facts.append((f"{median(row['clips_per_second'] for row in rows):.1f}", "clips a second, median"))
    facts.append((duration(goodput.elapsed), "since the start"))
    facts.append((f"{goodput.ratio_without_queue:.1%}", "goodput without queue"))
    facts.append((f"{goodput.ratio:.1%}", "goodput with queue"))
    facts.append((str(max(len(history.attempts) - 1, 0)), "restarts"))
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in facts
    )
    dot = f'<i class="dot" style="background:{RUN_COLOURS[number % len(RUN_COLOURS)]}"></i>'
    head = f"<h2>{dot}{escape(history.name)}</h2>{_description(history)}"
    return f'<section class="run">{head}<div class="facts">{cards}</div></section>'


def _description(history: RunHistory) -> str:
    if history.config is None or not history.attempts:
        return ""
    config, attempt = history.config, history.attempts[-1]
    words = [
        f"{config.model.size}, fine-tuning"
        if config.task == "finetune"
        else f"{config.model.size}, {config.mask.ratio:.0%} {config.mask.kind} masking, target {config.target.kind}",
        f"{config.clip.frames} x {config.clip.size} x {config.clip.size} clips, batch {config.optim.global_batch_size}",
        f"{attempt.world} ranks on {len(attempt.hosts)} node{'s' * (len(attempt.hosts) != 1)}, "
        f"ZeRO {config.engine.zero_stage}",
    ]
    return f'<p class="quiet">{escape("; ".join(words))}</p>'


def curves(histories: Sequence[RunHistory]) -> str:
    """Render charts of loss, optimisation and speed over steps. Each chart shows all runs."""
    keys = list(dict.fromkeys(key for history in histories for key in history.losses))
    cards = [_card(_loss_name(key), _lines(histories, key)) for key in keys]
    cards.append(_card("Learning rate", _lines(histories, "lr", zero=True)))
    cards.append(_card("Gradient norm, before clipping", _lines(histories, "grad_norm", zero=True)))
    cards.append(_card("Clips a second", _lines(histories, "clips_per_second", zero=True)))
    cards.append(_card(*_computing(histories)))
    cards.append(_card("Seconds a step", _lines(histories, "step_seconds", zero=True)))
    return f'<h2>Over the steps</h2><div class="cards">{"".join(cards)}</div>'


def _lines(histories: Sequence[RunHistory], key: str, *, zero: bool = False) -> str:
    return _chart(histories, [[row.get(key) for row in history.rows] for history in histories], zero=zero)


def _chart(histories: Sequence[RunHistory], values: Sequence[Sequence[float | None]], *, zero: bool) -> str:
    colours = [RUN_COLOURS[number % len(RUN_COLOURS)] for number in range(len(histories))]
    lines = [
        Curve(history.name if len(histories) > 1 else "", [row["step"] for row in history.rows], series, colour)
        for history, series, colour in zip(histories, values, colours, strict=True)
        if history.rows
    ]
    marks = [(step, colour) for history, colour in zip(histories, colours, strict=True) for step in history.resumes]
    return line_chart(lines, marks, zero=zero)


def _computing(histories: Sequence[RunHistory]) -> tuple[str, str]:
    """Return title and chart of the MFU, or of the model's FLOP/s if a config has no peak FLOP/s."""
    peaks = [history.config.monitoring.peak_tflops * 1e12 if history.config else 0.0 for history in histories]
    flops = [flops_per_clip_of(history.config).flops if history.config else None for history in histories]
    with_peak = all(peaks)
    values: list[list[float | None]] = []
    for history, peak, flops_per_clip in zip(histories, peaks, flops, strict=True):
        world = {row["attempt"]: row["world"] for row in history.of(Kind.START)}
        values.append([
            None if flops_per_clip is None
            else row["clips_per_second"] * flops_per_clip / (peak * world[row["attempt"]] if with_peak else 1e9)
            for row in history.rows
        ])  # fmt: skip
    title = "MFU" if with_peak else "GFLOP/s of the model (set monitoring.peak_tflops for MFU)"
    return title, _chart(histories, values, zero=True)


def phases(history: RunHistory, named: bool) -> str:
    """Render the phases of a step, the goodput, and the timeline of the attempts."""
    known = [row for row in history.rows if "forward_seconds" in row]
    steps = [row["step"] for row in known]
    areas = [
        Curve(phase.value.replace("_", " "), steps, [row[f"{phase.value}_seconds"] for row in known], colour)
        for phase, colour in PHASE_COLOURS.items()
    ]
    goodput = goodput_of(history)
    parts = [Slice("productive", goodput.productive, _PRODUCTIVE)]
    parts += [
        Slice(CATEGORIES[category][0], max(seconds, 0.0), CATEGORIES[category][1])
        for category, seconds in goodput.badput.items()
    ]
    whole = Slice("together", goodput.productive + sum(goodput.badput.values()), "transparent")
    lines = "".join(
        f'<tr><td><i class="dot" style="background:{part.colour}"></i>{escape(part.name)}</td>'
        f'<td class="n">{duration(part.value)}</td><td class="n">{part.value / (goodput.elapsed or 1):.1%}</td></tr>'
        for part in (*parts, whole)
        if part.value >= 0.005
    )
    ring = donut(parts, f"{goodput.ratio:.1%}", "goodput")
    pie = f'<div class="pie">{ring}<table>{lines}</table></div>'
    cards = _card("Seconds a step on rank 0, by phase", line_chart(areas, stacked=True)) + _card(
        "Goodput and badput", pie, double=True
    )
    return f'<h2>Time{_of(history, named)}</h2><div class="cards">{cards}</div>{_timeline(history)}'


def _timeline(history: RunHistory) -> str:
    """Render the attempts of the run over time."""
    if not history.attempts:
        return ""
    submitted = [row["time"] for row in history.of(Kind.SUBMITTED)]
    start = min([*submitted[:1], history.attempts[0].began])
    blocks = []
    attempts = history.attempts
    if start < attempts[0].began:
        blocks.append((0.0, attempts[0].began - start, CATEGORIES["queue_wait"][1], "in the queue"))
    for number, attempt in enumerate(attempts, 1):
        ready = attempt.ready or attempt.last_sign
        blocks.append((attempt.began - start, ready - start, CATEGORIES["init"][1], f"attempt {number}: starting"))
        steps = f"attempt {number}: steps {attempt.first_step} to {attempt.last_step}"
        blocks.append((ready - start, attempt.last_sign - start, _PRODUCTIVE, steps))
    for attempt, after in pairwise(attempts):
        for since, until, category in attempt.idle_until(after.began):
            name, colour = CATEGORIES[category]
            blocks.append((since - start, until - start, colour, f"{attempt.end_text}; {name}"))
    rows = [
        [str(number), _clock(attempt.began), ", ".join(attempt.hosts[:4]) + (" ..." if len(attempt.hosts) > 4 else ""),
         f"{attempt.first_step:,}", f"{attempt.last_step:,}", duration(max(attempt.last_sign - attempt.began, 0)),
         attempt.end_text if attempt is not attempts[-1] else history.state]
        for number, attempt in enumerate(attempts, 1)
    ]  # fmt: skip
    table = _table(["attempt", "began", "nodes", "from step", "to step", "lasted", "ended"], rows, numbers={3, 4, 5})
    return f'<div class="card" style="margin-top:14px"><h3>Attempts</h3>{strip(blocks)}{table}</div>'


def nodes_and_faults(history: RunHistory, named: bool) -> str:
    """Render stragglers and faults."""
    stragglers = history.stragglers().most_common(8)
    if stragglers:
        rows = [
            [str(rank), history.host_of(rank), f"{count / len(history.rows):.0%}", f"{_score(history.rows, rank):.2f}"]
            for rank, count in stragglers
        ]
        slow = _table(
            ["rank", "node", "steps it was slowest by 10 %", "mean ratio to the median"], rows, numbers={0, 2, 3}
        )
    else:
        slow = '<p class="none">no rank was 10 % slower than the median at any logged step</p>'
    faults = history.of(*_FAULTS)
    rows = [[_clock(row["time"]), f"{row['step']:,}", _FAULTS[Kind(row["kind"])], _detail(row)] for row in faults[-30:]]
    bad = _table(["time", "step", "fault", "details"], rows, numbers={1}) if rows else '<p class="none">none</p>'
    cards = _card("Stragglers, until the end of the forward pass", slow) + _card(
        f"Faults: {len(faults)}", bad, double=True
    )
    return f'<h2>Nodes and faults{_of(history, named)}</h2><div class="cards">{cards}</div>'


def loader_and_checkpoints(history: RunHistory, named: bool) -> str:
    """Render the figures of data loading and checkpoints."""
    rows = [row for row in history.rows if "loader_ready" in row]
    facts = []
    if rows:
        waits = sorted(row["data_wait_seconds"] / max(row["step_seconds"], 1e-9) for row in rows)
        capacity = history.config.data.prefetch if history.config else 0
        facts = [
            ["waiting for data, mean over steps", f"{fmean(waits):.1%}"],
            ["waiting for data, 95th percentile", f"{waits[int(0.95 * (len(waits) - 1))]:.1%}"],
            ["micro-batches ready, mean", f"{fmean(row['loader_ready'] for row in rows):.1f} of {capacity}"],
            ["logged steps with none ready", f"{sum(row['loader_ready'] == 0 for row in rows) / len(rows):.1%}"],
        ]
    corrupt = history.of(Kind.CORRUPT_SAMPLE)
    facts += [
        [f"corrupt: {reason}", str(count)] for reason, count in (corrupt[-1]["reasons"] if corrupt else {}).items()
    ]
    saves = history.of(Kind.CHECKPOINT)
    lines = [
        [
            f"{row['step']:,}",
            _clock(row["time"]),
            f"{row['bytes'] / 1e6:,.1f} MB",
            f"{row['seconds']:.2f} s",
            f"{row['blocking']:.2f} s",
        ]
        for row in saves[-12:]
    ]
    table = _table(["step", "time", "size", "duration", "blocking"], lines, numbers={0, 2, 3, 4})
    cards = _card("Data loader of rank 0", _table(["", ""], facts, numbers={1})) + _card(
        f"Checkpoints: {len(saves)}", table, double=True
    )
    return f'<h2>Data and checkpoints{_of(history, named)}</h2><div class="cards">{cards}</div>'


SECTIONS_PER_RUN = (phases, nodes_and_faults, loader_and_checkpoints)


def reconstructions(pictures: Sequence[Picture]) -> str:
    """Render reconstructions at several steps."""
    if not pictures:
        return ""
    cards = "".join(
        _card(
            picture.title,
            "".join(_strip(label, source) for label, source in picture.strips),
            double=not picture.strips[0][0],
        )
        for picture in pictures
    )
    note = f'<p class="quiet">The first samples of the run\'s shards. With normalised targets, {BORROWED}.</p>'
    return f'<h2>Reconstructions</h2>{note}<div class="cards">{cards}</div>'


def config_difference(histories: Sequence[RunHistory]) -> str:
    """Render the config keys that differ between the runs; for one run, the keys that differ from the defaults."""
    configs = {history.name: flat(history.config.model_dump()) for history in histories if history.config}
    if not configs:
        return ""
    if len(histories) == 1:
        configs = {"default": flat(Config().model_dump()), **configs}
    columns = list(configs.values())
    keys = [
        key for key in columns[0]
        if key not in ("name", "runs", "data.shards") and len({str(column.get(key)) for column in columns}) > 1
    ]  # fmt: skip
    rows = [[key, *(_value(column.get(key)) for column in columns)] for key in keys]
    title = "Config: differences" + (" from the defaults" if len(histories) == 1 else "")
    body = _table(["key", *configs], rows) if rows else '<p class="none">nothing</p>'
    return f'<h2>{title}</h2><div class="card">{body}</div>'


def whole_config(history: RunHistory) -> str:
    """Render the config as collapsed YAML."""
    if history.config is None:
        return ""
    text = config_yaml(history.config)
    return f"<p><details><summary>config of {escape(history.name)}</summary><pre>{escape(text)}</pre></details></p>"


def _strip(label: str, source: str) -> str:
    name = escape(label)
    if not label:
        return f'<figure><img class="labelled" alt="reconstruction" src="{source}"></figure>'
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{source}"></figure>'


def _card(title: str, body: str, *, double: bool = False) -> str:
    return f'<div class="card{" double" * double}"><h3>{escape(title)}</h3>{body}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=n' if column in numbers else ''}>{escape(text)}</{tag}>"

    top = "".join(cell("th", column, text) for column, text in enumerate(head)) if any(head) else ""
    body = "".join(f"<tr>{''.join(cell('td', column, text) for column, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _of(history: RunHistory, named: bool) -> str:
    return f" of {escape(history.name)}" if named else ""


def _loss_name(key: str) -> str:
    head = key.removeprefix("loss").strip("_")
    return f"loss, {head} head" if head in ("space", "time") else f"loss {head}".strip()


def _last(rows: Sequence[Row], key: str, count: int = 5) -> float:
    """Return the mean of the last values, because the loss of one step is noisy."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return fmean(known[-count:]) if known else float("nan")


def _score(rows: Sequence[Row], rank: int) -> float:
    return fmean(row["slowest_score"] for row in rows if row.get("slowest_rank") == rank)


def _clock(moment: float) -> str:
    return time.strftime("%b %d %H:%M:%S", time.localtime(moment))


def _detail(row: Row) -> str:
    known = {
        key: row[key]
        for key in ("reason", "cause", "node", "ranks", "samples", "reasons", "error", "path")
        if row.get(key)
    }
    return ", ".join(f"{key} {_value(value)}" for key, value in known.items())


def _value(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
