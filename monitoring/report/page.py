"""The report's HTML: one file without any resource from elsewhere."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from monitoring.report import sections
from monitoring.report.pictures import Picture
from motionmae.files import write_atomically
from motionmae.runs.history import Story

_HERE = Path(__file__).parent


def write_report(stories: Sequence[Story], out: Path, pictures: Sequence[Picture] = ()) -> None:
    """Write the report of one run, or of several beside each other.

    Args:
        stories: the runs.
        out: HTML file.
        pictures: of what the runs' heads rebuild, oldest first.
    """
    write_atomically(out, render(stories, pictures).encode())


def render(stories: Sequence[Story], pictures: Sequence[Picture] = ()) -> str:
    """The page."""
    title = " and ".join(story.name for story in stories)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">MotionMAE, {time.strftime("%Y-%m-%d %H:%M %Z")}. Dashed lines: the run was resumed.</p>',
        *(sections.summary(story, number) for number, story in enumerate(stories)),
        sections.curves(stories),
        *(section(story, len(stories) > 1) for story in stories for section in sections.OF_EACH_RUN),
        sections.reconstructions(pictures),
        sections.config_difference(stories),
        *(sections.whole_config(story) for story in stories),
    ]
    style, script = ((_HERE / name).read_text() for name in ("style.css", "script.js"))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - MotionMAE</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>\n{script}</script></body></html>\n"
    )
