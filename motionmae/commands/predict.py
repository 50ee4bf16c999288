"""`motionmae predict`: name the classes of video files."""

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motionmae.commands.app import Command, add_classes_argument, add_json_argument, add_weights_arguments
from motionmae.errors import UserError
from motionmae.files import write_atomically, write_json
from motionmae.outputs import containing, output_argument, signed
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.evaluation.inference import FrozenModel
    from motionmae.evaluation.load_model import Finetuned
    from motionmae.evaluation.predictor import Prediction, Timeline

_DESCRIPTION = """\
Print the most likely classes of videos, with scores from 0 to 1. The score of a class is the mean of the softmax
outputs of clips x crops views. The default is one view, the central clip. Folders are searched recursively. With
--timeline, every window of a video has its own scores."""

_EPILOG = """\
examples:
  motionmae predict runs/finetune_tiny_toy clip.mp4
  motionmae predict exported videos/ --clips 5 --crops 3 --json scores.json --csv scores.csv
  motionmae predict exported match.mp4 --timeline --every 1 --picture match.png
  motionmae predict videomae-base-finetuned-kinetics clip.mp4 --top 10
  motionmae predict vit_b_ssv2.pth clip.mp4 --classes ssv2_names.txt --set clip.stride=2 data.sampling=segments

Unreadable videos are listed and left out. The exit status is 2 if no video could be read."""

_HEADER = ["video", "start", "end", "problem", "class1", "score1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser, "a classifier")
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="video files, or folders of videos")
    add_classes_argument(parser)
    parser.add_argument("--top", type=int, default=5, help="classes to show for a video (default: 5)")
    parser.add_argument("--clips", type=int, default=1, help="clips per video (default: 1, the central one)")
    parser.add_argument("--crops", type=int, default=1, help="square crops of a clip (default: 1, the centre)")
    parser.add_argument("--timeline", action="store_true", help="score every window of the videos")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="from window to window (default: a clip)")
    parser.add_argument("--picture", type=output_argument(signed, ".png"), metavar="FILE.png", help="draw the timeline")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add_json_argument(parser, "video", "classes", content="scores of the top classes")
    kind = output_argument(containing(",".join(_HEADER)))
    parser.add_argument("--csv", type=kind, metavar="FILE", help="also write a row for each video or window")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.config import EngineConfig
    from motionmae.distributed.devices import choose_device
    from motionmae.evaluation.inference import FrozenModel
    from motionmae.evaluation.load_model import load_finetuned
    from motionmae.evaluation.predictor import Timeline
    from motionmae.evaluation.weights_source import find_weights

    _check(arguments)
    device = choose_device(EngineConfig(device=arguments.device).device)
    loaded = load_finetuned(
        find_weights(arguments.weights, arguments.step, arguments.settings, arguments.classes)
    ).with_views(arguments.clips, arguments.crops)
    videos, top = _find_videos(arguments.videos), min(arguments.top, len(loaded.class_names))
    if arguments.picture and len(videos) != 1:
        raise UserError(f"--picture draws one video, and {len(videos)} were found: give one, or leave out --picture")
    model = FrozenModel(loaded.model, loaded.config, device, loaded.config.test.batch_size)
    find = _timelines if arguments.timeline else _predictions
    records: list[dict[str, Any]] = []
    for video, found in find(loaded, model, videos, arguments.every):
        if isinstance(found, Exception):
            records.append({"video": str(video), "problem": str(found), "classes": []})
            continue
        records.append(_record(video, found, top))
        if arguments.picture and isinstance(found, Timeline):
            found.save(arguments.picture)
    _print(records, arguments.timeline)
    if arguments.json:
        write_json(arguments.json, records)
    if arguments.csv:
        write_atomically(arguments.csv, _as_csv(records, top).encode())
    for path in filter(None, (arguments.json, arguments.csv, arguments.picture)):
        say(f"wrote {path}")
    if all("problem" in record for record in records):
        raise UserError(f"none of the {len(records)} videos could be read: see the reasons above")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("top", "clips", "crops"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    if arguments.every is not None and not 0 < arguments.every < float("inf"):
        raise UserError(f"--every must be a positive number of seconds, not {arguments.every:g}")
    if not arguments.timeline and (arguments.every or arguments.picture):
        raise UserError("--every and --picture are for a timeline: add --timeline")
    if arguments.timeline and (arguments.clips > 1 or arguments.crops > 1):
        raise UserError("a window of a timeline has one clip and one crop: leave out --clips and --crops")


def _find_videos(given: list[Path]) -> list[Path]:
    """Return the files, and the video files in the folders, in the order given. Raise UserError if one is absent."""
    from motionmae.evaluation.features import find_videos

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += [path / name for name in find_videos(path)[0]]
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist: give video files, or folders of videos")
    return found


def _predictions(
    loaded: "Finetuned", model: "FrozenModel", videos: list[Path], _: float | None
) -> Iterator[tuple[Path, "Prediction | Exception"]]:
    from motionmae.data.held_out.read_ahead import read_ahead
    from motionmae.evaluation.predictor import predict_views, read_views
    from motionmae.screen import progress_of

    def read(name: str) -> Any:
        return read_views(Path(name), loaded.config)

    with progress_of(disable=len(videos) == 1 or not sys.stdout.isatty(), transient=True) as progress:
        inputs = read_ahead([str(video) for video in videos], read, loaded.config.data.threads)
        for name, views in progress.track(inputs, total=len(videos), description="predict"):
            if isinstance(views, Exception):
                yield Path(name), views
            else:
                yield Path(name), predict_views(model, views, loaded.class_names, name)


def _timelines(
    loaded: "Finetuned", model: "FrozenModel", videos: list[Path], every: float | None
) -> Iterator[tuple[Path, "Timeline | Exception"]]:
    from motionmae.data.video.read_video import UnreadableVideo
    from motionmae.evaluation.predictor import join, predict_timeline
    from motionmae.screen import progress_of

    with progress_of(disable=not sys.stdout.isatty(), transient=True) as progress:
        total = progress.add_task("videos", total=len(videos))
        for video in videos:
            windows = progress.add_task(f"windows of {video.name}", total=None)
            parts = []
            try:
                for part in predict_timeline(model, video, loaded.config, loaded.class_names, every):
                    parts.append(part)
                    progress.advance(windows, len(part.scores))
                yield video, join(parts)
            except UnreadableVideo as error:
                yield video, error
            progress.remove_task(windows)
            progress.advance(total)


def _record(video: Path, found: "Prediction | Timeline", top: int) -> dict[str, Any]:
    """Return a video's entry in the JSON file."""
    from motionmae.evaluation.predictor import Timeline

    if not isinstance(found, Timeline):
        return {"video": str(video), "classes": _classes(found.top(top)), "views": len(found.logits)}
    rows = zip(found.frames.tolist(), found.seconds.tolist(), found.top(top), strict=True)
    windows = [
        {
            "frames": frames,
            "seconds": None if seconds[0] != seconds[0] else [round(time, 6) for time in seconds],
            "classes": _classes(best),
        }
        for frames, seconds, best in rows
    ]
    return {"video": str(video), "classes": _classes(found.mean.top(top)), "windows": windows}


def _classes(top: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "score": round(score, 6)} for name, score in top]


def _print(records: list[dict[str, Any]], timeline: bool) -> None:
    from motionmae.screen import Table, show
    from motionmae.text import cell

    table = Table()
    longest = max((cell(record["video"]).cell_len for record in records), default=0)
    table.add_column("video", min_width=longest)  # paths stay whole for copying
    for heading in ("from", "to", "score") if timeline else ("score",):
        table.add_column(heading, justify="right")
    table.add_column("class")
    for record in records:
        name = record["video"]
        for window in record.get("windows", [record] if record["classes"] else []):
            places = _places(window) if timeline else ()
            for one in window["classes"][: 1 if timeline else None]:
                table.add_row(name, *places, f"{one['score']:.3f}", one["class"])
                name = ""
    if table.rows:
        show(table, wrap=False)
    for record in records:
        if "problem" in record:
            say(f"not read: {record['problem']}")


def _places(window: dict[str, Any]) -> tuple[str, str]:
    if window["seconds"] is None:
        return f"frame {window['frames'][0]}", f"frame {window['frames'][1]}"
    return f"{window['seconds'][0]:.2f} s", f"{window['seconds'][1]:.2f} s"


def _as_csv(records: list[dict[str, Any]], top: int) -> str:
    """Return a row for each video or window. ``start`` and ``end`` are seconds, or frames if the file has no times."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    more = [f"{part}{number}" for number in range(2, top + 1) for part in ("class", "score")]
    writer.writerow([*_HEADER, *more])
    for record in records:
        for window in record.get("windows", [record]):
            start, end = window.get("seconds") or window.get("frames") or ("", "")
            cells = [cell for one in window["classes"] for cell in (one["class"], one["score"])]
            writer.writerow([record["video"], start, end, record.get("problem", ""), *cells])
    return text.getvalue()


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)
