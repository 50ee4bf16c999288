"""Metrics rows and durations as text, for terminals and logs."""

from motionmae.runs.events import Row


def describe_row(row: Row, seconds_left: float) -> str:
    """Format a metrics row and the remaining time on one line."""
    wait = row["data_wait_seconds"] / max(row["step_seconds"], 1e-9)
    parts = ", ".join(f"{key[5:]} {value:.4f}" for key, value in row.items() if key.startswith("loss_"))
    return (
        f"epoch {row['epoch']:.2f}  "
        f"loss {row['loss']:.4f}{f' ({parts})' if parts else ''}  "
        f"lr {row['lr']:.2e}  "
        f"{row['clips_per_second']:.1f} clips/s  data wait {wait:.0%}  {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Format seconds: ``2 d 03 h``, ``3 h 07 min``, ``4 min 09 s``, ``12 s``."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
