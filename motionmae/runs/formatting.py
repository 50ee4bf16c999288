"""Metrics rows and durations as text, for terminals and logs."""

from collections.abc import Mapping

from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row

_PERCENT = {"top1": "top-1", "top5": "top-5", "knn": "k-NN"}
"""Figures in per cent, with their titles."""


def describe_row(row: Row, seconds_left: float) -> str:
    """Format a metrics row and the remaining time on one line. A validation has a line of its own."""
    wait = row["data_wait_seconds"] / max(row["step_seconds"], 1e-9)
    parts = ", ".join(f"{key[5:]} {value:.4f}" for key, value in row.items() if key.startswith("loss_"))
    return (
        f"epoch {row['epoch']:.2f}  "
        f"loss {row['loss']:.4f}{f' ({parts})' if parts else ''}  "
        f"lr {row['lr']:.2e}  "
        f"{row['clips_per_second']:.1f} clips/s  data wait {wait:.0%}  {duration(seconds_left)} left"
    )


def describe_figures(figures: Mapping[str, float | None]) -> str:
    """Format the figures of a validation: ``loss 1.2345, top-1 85.2 %, space explained 0.312``."""
    texts = []
    for name, value in figures.items():
        number = "unknown" if value is None else f"{value:.1f} %" if name in _PERCENT else f"{value:.4g}"
        title = _PERCENT.get(name) or _title(name)
        texts.append(f"{title} {number}")
    return ", ".join(texts)


def figures_of(row: Row) -> dict[str, float | None]:
    """Return the figures in the row of a validation event."""
    heads = {key: value for key, value in row.items() if key.startswith(("loss_", "explained_"))}
    return {key: row[key] for key in ("loss", "top1", "top5", "knn") if key in row} | heads


def _title(name: str) -> str:
    kind, _, head = name.partition("_")
    return f"{head} {kind}" if head else name


def duration(seconds: float) -> str:
    """Format seconds: ``2 d 03 h``, ``3 h 07 min``, ``4 min 09 s``, ``12 s``."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def counted(number: int, noun: str) -> str:
    """Return ``1 rank``, ``2 ranks`` for a noun with a regular plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def describe_kind(row: Row) -> str:
    """Return the kind of an event as people name it: a stop that the user asked for is no preemption."""
    asked = row["kind"] == Kind.PREEMPTION and row.get("reason") in (EndReason.STOPPED, EndReason.TERMINATED)
    return "stop requested" if asked else str(row["kind"]).replace("_", " ")
