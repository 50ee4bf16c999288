"""The report's sections, each a function from runs to HTML."""

import time
from collections.abc import Container, Sequence
from html import escape
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from monitoring.report.charts import Curve, Slice, donut, line_chart, strip
from monitoring.report.pictures import BORROWED, Picture
from motionmae.config import Config, config_yaml, flat
from motionmae.runs.events import Kind, Row
from motionmae.runs.formatting import duration
from motionmae.runs.history import Story
from motionmae.runs.phases import Phase

RUN_COLOURS = [f"var(--c{number})" for number in (0, 1, 2, 3, 4, 6, 8)]
PHASE_COLOURS = {
    Phase.FORWARD: "var(--c0)", Phase.BACKWARD: "var(--c8)", Phase.OPTIMIZER: "var(--c2)",
    Phase.DATA_WAIT: "var(--c1)", Phase.CHECKPOINT: "var(--c4)", Phase.OTHER: "var(--c5)",
}  # fmt: skip
CAUSES = {
    "queue_wait": ("waiting in the queue", "var(--c6)"), "init": ("starting", "var(--c0)"),
    "restore": ("restoring", "var(--c8)"), "data_wait": ("waiting for data", "var(--c1)"),
    "checkpoint_blocking": ("saving", "var(--c4)"), "lost_work": ("work done again", "var(--c3)"),
    "downtime": ("down", "var(--c7)"), "other": ("other", "var(--c5)"),
}  # fmt: skip
"""What badput is called, and its colour."""
_PRODUCTIVE = "var(--c2)"
_FAULTS = {
    Kind.NONFINITE: "step skipped", Kind.CORRUPT_SAMPLE: "corrupt samples", Kind.CHECKPOINT_FAILED: "save failed",
    Kind.CHECKPOINT_DAMAGED: "damaged checkpoint passed over", Kind.HANG: "hung", Kind.ROLLBACK: "went back",
    Kind.FAILURE: "attempt failed",
}  # fmt: skip


def summary(story: Story, number: int) -> str:
    """What the run is and how it stands."""
    rows, goodput = story.rows, story.goodput
    facts = [(story.state, "state")]
    if rows:
        total = story.total_steps
        facts.append((f"{rows[-1]['step']:,}" + (f" / {total:,}" if total else ""), "steps"))
        facts.append((f"{rows[-1]['epoch']:.1f}", "epochs"))
        facts += [(f"{_last(rows, key):.4f}", _loss_name(key)) for key in story.losses]
        facts.append((f"{median(row['clips_per_second'] for row in rows):.1f}", "clips a second, median"))
    facts.append((duration(goodput.elapsed), "since the start"))
    facts.append((f"{goodput.ratio_without_queue:.1%}", "goodput without queue"))
    facts.append((f"{goodput.ratio:.1%}", "goodput with queue"))
    facts.append((str(max(len(story.lives) - 1, 0)), "restarts"))
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in facts
    )
    dot = f'<i class="dot" style="background:{RUN_COLOURS[number % len(RUN_COLOURS)]}"></i>'
    head = f"<h2>{dot}{escape(story.name)}</h2>{_what(story)}"
    return f'<section class="run">{head}<div class="facts">{cards}</div></section>'


def _what(story: Story) -> str:
    if story.config is None or not story.lives:
        return ""
    config, life = story.config, story.lives[-1]
    words = [
        f"{config.model.size}, fine-tuning"
        if config.task == "finetune"
        else f"{config.model.size}, {config.mask.ratio:.0%} {config.mask.kind} masking, target {config.target.kind}",
        f"{config.clip.frames} x {config.clip.size} x {config.clip.size} clips, batch {config.optim.global_batch_size}",
        f"{life.world} ranks on {len(life.hosts)} node{'s' * (len(life.hosts) != 1)}, ZeRO {config.engine.zero_stage}",
    ]
    return f'<p class="quiet">{escape("; ".join(words))}</p>'


def curves(stories: Sequence[Story]) -> str:
    """Losses, optimisation and pace over steps, the runs in one picture each."""
    keys = list(dict.fromkeys(key for story in stories for key in story.losses))
    cards = [_card(_loss_name(key), _lines(stories, key)) for key in keys]
    cards.append(_card("Learning rate", _lines(stories, "lr", zero=True)))
    cards.append(_card("Gradient norm, before clipping", _lines(stories, "grad_norm", zero=True)))
    cards.append(_card("Clips a second", _lines(stories, "clips_per_second", zero=True)))
    cards.append(_card(*_computing(stories)))
    cards.append(_card("Seconds a step", _lines(stories, "step_seconds", zero=True)))
    return f'<h2>Over the steps</h2><div class="cards">{"".join(cards)}</div>'


def _lines(stories: Sequence[Story], key: str, *, zero: bool = False) -> str:
    return _chart(stories, [[row.get(key) for row in story.rows] for story in stories], zero=zero)


def _chart(stories: Sequence[Story], values: Sequence[Sequence[float | None]], *, zero: bool) -> str:
    colours = [RUN_COLOURS[number % len(RUN_COLOURS)] for number in range(len(stories))]
    lines = [
        Curve(story.name if len(stories) > 1 else "", [row["step"] for row in story.rows], series, colour)
        for story, series, colour in zip(stories, values, colours, strict=True)
        if story.rows
    ]
    marks = [(step, colour) for story, colour in zip(stories, colours, strict=True) for step in story.resumes]
    return line_chart(lines, marks, zero=zero)


def _computing(stories: Sequence[Story]) -> tuple[str, str]:
    """MFU where the configs say the devices' peak, else what the model computes a second."""
    peaks = [story.config.monitoring.peak_tflops * 1e12 if story.config else 0.0 for story in stories]
    works = [story.work() for story in stories]
    with_peak = all(peaks)
    values: list[list[float | None]] = []
    for story, peak, work in zip(stories, peaks, works, strict=True):
        world = {row["attempt"]: row["world"] for row in story.of(Kind.START)}
        values.append([
            None if work is None
            else row["clips_per_second"] * work.flops / (peak * world[row["attempt"]] if with_peak else 1e9)
            for row in story.rows
        ])  # fmt: skip
    title = "MFU" if with_peak else "Computing of the model, GFLOP/s (monitoring.peak_tflops makes it MFU)"
    return title, _chart(stories, values, zero=True)


def phases(story: Story, named: bool) -> str:
    """Where the seconds of a step went, and of the run."""
    known = [row for row in story.rows if "forward_seconds" in row]
    steps = [row["step"] for row in known]
    areas = [
        Curve(phase.value.replace("_", " "), steps, [row[f"{phase.value}_seconds"] for row in known], colour)
        for phase, colour in PHASE_COLOURS.items()
    ]
    goodput = story.goodput
    parts = [Slice("productive", goodput.productive, _PRODUCTIVE)]
    parts += [Slice(CAUSES[cause][0], max(seconds, 0.0), CAUSES[cause][1]) for cause, seconds in goodput.badput.items()]
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
        "Where the time went", pie, double=True
    )
    return f'<h2>Time{_of(story, named)}</h2><div class="cards">{cards}</div>{_timeline(story)}'


def _timeline(story: Story) -> str:
    """The run's lives along the clock."""
    if not story.lives:
        return ""
    start = min([*story.submitted[:1], story.lives[0].began])
    blocks = []
    lives = story.lives
    if start < lives[0].began:
        blocks.append((0.0, lives[0].began - start, CAUSES["queue_wait"][1], "in the queue"))
    for number, life in enumerate(lives, 1):
        ready = life.ready or life.ended
        blocks.append((life.began - start, ready - start, CAUSES["init"][1], f"life {number}: starting"))
        steps = f"life {number}: steps {life.first_step} to {life.last_step}"
        blocks.append((ready - start, life.ended - start, _PRODUCTIVE, steps))
    for life, after in pairwise(lives):
        for since, until, cause in life.silence(after.began):
            name, colour = CAUSES[cause]
            blocks.append((since - start, until - start, colour, f"{life.ended_by}; {name}"))
    rows = [
        [str(number), _clock(life.began), ", ".join(life.hosts[:4]) + (" ..." if len(life.hosts) > 4 else ""),
         f"{life.first_step:,}", f"{life.last_step:,}", duration(max(life.ended - life.began, 0)),
         life.ended_by if life is not lives[-1] else story.state]
        for number, life in enumerate(lives, 1)
    ]  # fmt: skip
    table = _table(["life", "began", "nodes", "from step", "to step", "lasted", "ended"], rows, numbers={3, 4, 5})
    return f'<div class="card" style="margin-top:14px"><h3>Lives</h3>{strip(blocks)}{table}</div>'


def nodes_and_faults(story: Story, named: bool) -> str:
    """Who held up the others, and what went wrong."""
    slowest = story.slowest().most_common(8)
    if slowest:
        rows = [
            [str(rank), story.host_of(rank), f"{count / len(story.rows):.0%}", f"{_score(story.rows, rank):.2f}"]
            for rank, count in slowest
        ]
        slow = _table(["rank", "node", "slowest by a tenth or more", "times the median, mean"], rows, numbers={0, 2, 3})
    else:
        slow = '<p class="none">no rank was a tenth slower than the median at any logged step</p>'
    faults = story.of(*_FAULTS)
    rows = [[_clock(row["time"]), f"{row['step']:,}", _FAULTS[Kind(row["kind"])], _detail(row)] for row in faults[-30:]]
    bad = _table(["when", "step", "what", "more"], rows, numbers={1}) if rows else '<p class="none">none</p>'
    cards = _card("Stragglers, until the end of the forward pass", slow) + _card(
        f"Faults: {len(faults)}", bad, double=True
    )
    return f'<h2>Nodes and faults{_of(story, named)}</h2><div class="cards">{cards}</div>'


def loader_and_checkpoints(story: Story, named: bool) -> str:
    """How data came in and states went out."""
    rows = [row for row in story.rows if "loader_ready" in row]
    facts = []
    if rows:
        waits = sorted(row["data_wait_seconds"] / max(row["step_seconds"], 1e-9) for row in rows)
        capacity = story.config.data.prefetch if story.config else 0
        facts = [
            ["waiting for data, mean over steps", f"{fmean(waits):.1%}"],
            ["the same, 95 % of steps stay below", f"{waits[int(0.95 * (len(waits) - 1))]:.1%}"],
            ["micro-batches ready, mean", f"{fmean(row['loader_ready'] for row in rows):.1f} of {capacity}"],
            ["logged steps that found none ready", f"{sum(row['loader_ready'] == 0 for row in rows) / len(rows):.1%}"],
        ]
    corrupt = story.of(Kind.CORRUPT_SAMPLE)
    facts += [
        [f"corrupt: {reason}", str(count)] for reason, count in (corrupt[-1]["reasons"] if corrupt else {}).items()
    ]
    saves = story.of(Kind.CHECKPOINT)
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
    table = _table(["step", "when", "size", "took", "held up training"], lines, numbers={0, 2, 3, 4})
    cards = _card("Loader of rank 0", _table(["", ""], facts, numbers={1})) + _card(
        f"Checkpoints: {len(saves)}", table, double=True
    )
    return f'<h2>Data and checkpoints{_of(story, named)}</h2><div class="cards">{cards}</div>'


OF_EACH_RUN = (phases, nodes_and_faults, loader_and_checkpoints)


def reconstructions(pictures: Sequence[Picture]) -> str:
    """What the heads rebuilt at several steps."""
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
    note = f'<p class="quiet">The first samples of the run\'s shards. Where targets are normalised, {BORROWED}.</p>'
    return f'<h2>What the heads rebuild</h2>{note}<div class="cards">{cards}</div>'


def config_difference(stories: Sequence[Story]) -> str:
    """Where runs differ from each other; of one run, where it differs from the defaults."""
    configs = {story.name: flat(story.config.model_dump()) for story in stories if story.config}
    if not configs:
        return ""
    if len(stories) == 1:
        configs = {"default": flat(Config().model_dump()), **configs}
    columns = list(configs.values())
    keys = [
        key for key in columns[0]
        if key not in ("name", "runs", "data.shards") and len({str(column.get(key)) for column in columns}) > 1
    ]  # fmt: skip
    rows = [[key, *(_value(column.get(key)) for column in columns)] for key in keys]
    title = "Config: what differs" + (" from the defaults" if len(stories) == 1 else "")
    body = _table(["key", *configs], rows) if rows else '<p class="none">nothing</p>'
    return f'<h2>{title}</h2><div class="card">{body}</div>'


def whole_config(story: Story) -> str:
    """The config as YAML, folded away."""
    if story.config is None:
        return ""
    text = config_yaml(story.config)
    return f"<p><details><summary>config of {escape(story.name)}</summary><pre>{escape(text)}</pre></details></p>"


def _strip(label: str, source: str) -> str:
    name = escape(label)
    if not label:
        return f'<figure><img class="labelled" alt="reconstruction" src="{source}"></figure>'
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{source}"></figure>'


def _card(title: str, body: str, *, double: bool = False) -> str:
    return f'<div class="card{" double" * double}"><h3>{escape(title)}</h3>{body}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    def cell(tag: str, place: int, text: str) -> str:
        return f"<{tag}{' class=n' if place in numbers else ''}>{escape(text)}</{tag}>"

    top = "".join(cell("th", place, text) for place, text in enumerate(head)) if any(head) else ""
    body = "".join(f"<tr>{''.join(cell('td', place, text) for place, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _of(story: Story, named: bool) -> str:
    return f" of {escape(story.name)}" if named else ""


def _loss_name(key: str) -> str:
    head = key.removeprefix("loss").strip("_")
    return f"loss, {head} head" if head in ("space", "time") else f"loss {head}".strip()


def _last(rows: Sequence[Row], key: str, count: int = 5) -> float:
    """Mean of the last few: a step's loss is noisy."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return fmean(known[-count:]) if known else float("nan")


def _score(rows: Sequence[Row], rank: int) -> float:
    return fmean(row["slowest_score"] for row in rows if row.get("slowest_rank") == rank)


def _clock(moment: float) -> str:
    return time.strftime("%b %d %H:%M:%S", time.localtime(moment))


def _detail(row: Row) -> str:
    known = {
        key: row[key]
        for key in ("cause", "node", "ranks", "samples", "reasons", "error", "path", "reason")
        if row.get(key)
    }
    return ", ".join(f"{key} {_value(value)}" for key, value in known.items())


def _value(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
