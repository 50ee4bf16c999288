"""The report as one self-contained HTML file."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from monitoring.report import sections
from monitoring.report.pictures import Picture
from motionmae.files import write_atomically
from motionmae.runs.history import RunHistory

_HERE = Path(__file__).parent


def write_report(histories: Sequence[RunHistory], out: Path, pictures: Sequence[Picture] = ()) -> None:
    """Write the report of one run, or of several side by side, to the HTML file ``out``."""
    write_atomically(out, render(histories, pictures).encode())


def render(histories: Sequence[RunHistory], pictures: Sequence[Picture] = ()) -> str:
    """Return the HTML of the page."""
    title = " and ".join(history.name for history in histories)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">MotionMAE, {time.strftime("%Y-%m-%d %H:%M %Z")}. Dashed lines: the run was resumed.</p>',
        *(sections.summary(history, number) for number, history in enumerate(histories)),
        sections.curves(histories),
        *(section(history, len(histories) > 1) for history in histories for section in sections.SECTIONS_PER_RUN),
        sections.reconstructions(pictures),
        sections.config_difference(histories),
        *(sections.whole_config(history) for history in histories),
    ]
    style, script = ((_HERE / name).read_text() for name in ("style.css", "script.js"))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - MotionMAE</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>\n{script}</script></body></html>\n"
    )
