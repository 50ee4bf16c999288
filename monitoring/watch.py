"""Live view of a run in a terminal. It reads only the run folder, and works over SSH and on any node."""

import time
from collections.abc import Iterable, Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from monitoring.goodput import CATEGORIES, Goodput, goodput_of
from motionmae.runs.events import FAULTS, OUTSIDE_STEPS, Kind, Phase, Row
from motionmae.runs.formatting import counted, describe_figures, describe_kind, duration, figures_of
from motionmae.runs.history import RunHistory, RunState
from motionmae.screen import Table, draw_bar
from motionmae.text import cell, printable

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {
    Phase.FORWARD: "blue", Phase.BACKWARD: "cyan", Phase.OPTIMIZER: "green", Phase.DATA_WAIT: "yellow",
    Phase.CHECKPOINT: "magenta", Phase.MEMORY_COPY: "bright_magenta", Phase.VALIDATION: "bright_blue",
    Phase.OTHER: "bright_black",
}  # fmt: skip
STATE_STYLES = {
    RunState.QUEUED: "yellow", RunState.STARTING: "cyan", RunState.TRAINING: "cyan", RunState.SILENT: "red",
    RunState.FINISHED: "green", RunState.STOPPED: "yellow", RunState.PREEMPTED: "yellow", RunState.REQUEUED: "yellow",
    RunState.FAILED: "red",
}  # fmt: skip
_Cells = tuple[str | Text, ...]
_RECENT = 50  # number of logged rows in the averages


def view(history: RunHistory, width: int, now: float | None = None) -> RenderableType:
    """Render the content of the screen for a terminal of ``width`` characters, at the time ``now`` in Unix seconds."""
    now = time.time() if now is None else now
    rows = history.rows[-_RECENT:]
    parts: list[RenderableType] = [_header(history, now)]
    if rows:
        parts.append(_progress(history))
        panels = [_losses(history, 24 if width < 100 else 32), _speed(history, rows), _goodput(goodput_of(history))]
        parts.append(Columns(panels) if width >= 60 else Group(*panels))
    parts.append(_recent_events(history, now))
    return Group(*parts)


def _header(history: RunHistory, now: float) -> Text:
    state = history.state
    text = Text.assemble(cell(history.name, "bold"), "  ", cell(state, f"bold {STATE_STYLES[state]}"))
    if history.attempts:
        attempt = history.attempts[-1]
        hosts = ", ".join(attempt.hosts[:4]) + (f" and {len(attempt.hosts) - 4} more" if len(attempt.hosts) > 4 else "")
        text.append(
            cell(f"  {counted(attempt.world, 'rank')} on {hosts}; attempt {len(history.attempts)}", "bright_black")
        )
        idle = now - attempt.last_sign
        if state in (RunState.STARTING, RunState.TRAINING, RunState.SILENT):
            text.append(f"; last row {duration(idle)} ago", "bright_black" if idle < 120 else "bold red")
    return text


def _progress(history: RunHistory) -> RenderableType:
    row, total = history.rows[-1], history.total_steps or history.rows[-1]["step"]
    left = (total - row["step"]) * sum(r["step_seconds"] for r in history.rows[-5:]) / len(history.rows[-5:])
    table = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), expand=True, padding=(0, 1))
    done = f"step {row['step']:,} / {total:,}, epoch {row['epoch']:.1f}"
    table.add_row(done, ProgressBar(total, row["step"]), f"{duration(left)} left" if left else "done")
    return table


def _losses(history: RunHistory, width: int) -> Panel:
    rows = []
    for key in [*history.losses, "grad_norm", "lr"]:
        series = [row.get(key) for row in history.rows]
        last = next((value for value in reversed(series) if value is not None), None)
        curve = cell(sparkline(series, width), "cyan")
        rows.append((key.replace("_", " "), curve, "-" if last is None else f"{last:.4g}"))
    return _panel("all steps", rows)


def _speed(history: RunHistory, recent: Sequence[Row]) -> Panel:
    steps = sum(row.get("steps", 1) for row in recent)

    def mean(key: str) -> float:
        return sum(row.get(key, 0.0) * row.get("steps", 1) for row in recent) / steps

    rows: list[_Cells] = [
        ("clips per second", "", f"{mean('clips_per_second'):.1f}"),
        ("step", "", f"{mean('step_seconds'):.3f} s"),
    ]
    outside = sum(mean(f"{phase.value}_seconds") for phase in OUTSIDE_STEPS)
    whole = mean("step_seconds") + outside or 1.0
    for phase, style in _STYLES.items():
        share = min(max(mean(f"{phase.value}_seconds") / whole, 0.0), 1.0)
        bar = cell(draw_bar(round(share * 12)), style)
        alarming = phase is Phase.DATA_WAIT and share > 0.2
        rows.append((phase.value.replace("_", " "), bar, cell(f"{share:.0%}", "bold red" if alarming else "")))
    for rank, count in history.stragglers().most_common(1):
        rows.append(("slowest rank", f"{rank} on {history.host_of(rank)}", f"{count / len(history.rows):.0%}"))
    return _panel(f"last {len(recent)} rows", rows)


def _goodput(goodput: Goodput) -> Panel:
    elapsed = goodput.elapsed or 1.0
    rows: list[_Cells] = [
        (cell("goodput", "green"), "", cell(f"{goodput.ratio:.1%}", "green")),
        ("without queue", "", f"{goodput.ratio_without_queue:.1%}"),
    ]
    for category, seconds in sorted(goodput.badput.items(), key=lambda item: -item[1]):
        if seconds / elapsed >= 0.001:
            rows.append((CATEGORIES[category], duration(seconds), f"{seconds / elapsed:.1%}"))
    return _panel(f"{duration(elapsed)} since the start", rows)


def _recent_events(history: RunHistory, now: float) -> Panel:
    rows = []
    for row in history.events[-8:]:
        bad = row["kind"] in FAULTS or "error" in row
        kind = cell(describe_kind(row), "red" if bad else "")
        figures = describe_figures(figures_of(row)) if row["kind"] == Kind.VALIDATION else ""
        details = row.get("error") or figures or row.get("reason") or row.get("cause") or row.get("path") or ""
        age = f"{duration(max(now - row['time'], 0))} ago"
        rows.append((age, kind, f"step {row['step']:,}", printable(details)[:60]))
    return _panel("events", rows)


def _panel(title: str, rows: Iterable[_Cells]) -> Panel:
    columns = (Column(style="bright_black", no_wrap=True), Column(no_wrap=True), Column(justify="right", no_wrap=True))
    table = Table.grid(*columns, padding=(0, 1))
    for row in rows:
        table.add_row(*row)
    return Panel(table, title=cell(title), title_align="left", border_style="bright_black")


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Draw a curve as one line of text. None leaves a gap."""
    size = -(-len(values) // width) or 1
    groups = [[v for v in values[start : start + size] if v is not None] for start in range(0, len(values), size)]
    means = [sum(group) / len(group) if group else None for group in groups]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(" " if m is None else _BLOCKS[min(int((m - low) / span * len(_BLOCKS)), 7)] for m in means)
