"""Command line of `motionmae init`."""

import argparse
import re
import shlex
from pathlib import Path

from data_tools.init.survey import Machine, Part, Survey, look_at_machine, look_at_videos
from data_tools.reporting import name_file, refuse_inside
from motionmae.commands.app import Command
from motionmae.config.text_types import run_name
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.text import LINES, printable, say

_DESCRIPTION = """\
Look at a folder of videos and at this machine, and write a config that fits both: frames, stride, size, batch, epochs,
workers. Each value has a comment that says why. Videos in class folders, or a list with labels, also get a config for
fine-tuning. Videos without a split are divided: one in five is held out, in lists that you may edit.

The next commands are printed; they run as printed, in the same folder (docs/own_videos.md)."""

_EXAMPLES = """\
examples:
  motionmae init VIDEOS
  motionmae init VIDEOS --name kitchen --data /scratch/kitchen"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", type=Path, metavar="DIR", help="folder of the videos, in any layout")
    parser.add_argument("--name", help="name of the run and of the files (default: that of the folder)")
    parser.add_argument(
        "--data", metavar="DIR", help="folder for the shards (default: data/NAME; it must not lie in DIR)"
    )


@name_file()
def run(arguments: argparse.Namespace) -> int:
    from data_tools.init.choices import choose_finetuning, choose_pretraining  # imports torch, slowly
    from data_tools.init.write import refuse_existing, write_recipe

    videos: Path = arguments.videos
    name = _name_of(arguments.name, videos)
    data = _shards_folder(arguments.data, name, videos)
    files = {kind: Path(f"{kind}{name}.yaml") for kind in ("", "finetune_")}
    lists = {split: Path(f"{name}_{split}.csv") for split in ("train", "val")}
    refuse_existing([*files.values(), *lists.values()])
    survey, machine = look_at_videos(videos), look_at_machine()
    say(_describe(videos, survey, machine), keep=LINES)
    train, held_out = f"{data}/train", f"{data}/val" if survey.held_out else ""
    recipe = choose_pretraining(survey, machine, name, train, held_out)
    written = []
    parts = {"train": survey.train, "val": survey.held_out}
    for split, part in parts.items():
        if part and part.list_file:
            write_atomically(lists[split], part.list_file.encode(errors="surrogateescape"))
            written.append(lists[split])
    heading = f"Written by `motionmae init {shlex.quote(str(videos))}`. Change what you like: only the values that\n"
    heading += "differ from the base are here, and `motionmae config show` prints all of them."
    write_recipe(files[""], recipe, heading)
    written.append(files[""])
    classifies = len(survey.class_names) > 1
    if classifies:
        finetuning = choose_finetuning(survey, machine, f"finetune_{name}", train, held_out, recipe)
        write_recipe(files["finetune_"], finetuning, heading)
        written.append(files["finetune_"])
    say(f"wrote {', '.join(map(str, written))}")
    say()
    say("next:")
    for command in _commands(videos, name, data, survey, machine, classifies, lists):
        say(f"  {command}", keep=LINES)
    return 0


def _name_of(given: str | None, videos: Path) -> str:
    """Return the name of the run: letters, digits, ``_``, ``-`` and ``.``."""
    name = given or re.sub(r"[^\w.-]+", "_", videos.resolve().name).strip("-._") or "videos"
    try:
        return run_name(name)
    except ValueError as error:
        raise UserError(f"--name {name} is not possible: {error}") from None


def _shards_folder(given: str | None, name: str, videos: Path) -> str:
    """Return a folder for the shards, outside of the videos. Raise UserError if there is none."""
    if given:
        refuse_inside(Path(given), {"the folder of videos": videos}, option="--data")
        return given.rstrip("/")
    for folder in (f"data/{name}", f"data/{name}_shards", f"../{name}_shards"):
        if not Path(folder).resolve().is_relative_to(videos.resolve()):
            return folder
    raise UserError(f"shards must not lie in the folder of videos {videos}: give another folder with --data")


def _describe(videos: Path, survey: Survey, machine: Machine) -> str:
    from data_tools.init.choices import is_long

    count, held_out = len(survey.train.videos), len(survey.held_out.videos) if survey.held_out else 0
    classes = f"{len(survey.class_names)} classes" if survey.class_names else "no classes"
    clips = f"a usual video has {survey.median_frames} frames of {survey.long_side} x {survey.short_side} pixels"
    power = f"{machine.gpus} x {machine.device}" if machine.gpus else f"{machine.cores} CPU cores and no GPU"
    lines = [
        f"{videos}: {count} videos for training and {held_out} held out, {classes}; {clips} at {survey.fps:.4g} "
        f"a second",
        f"this machine: {power}",
    ]
    if survey.unreadable:
        lines.append(f"note: {survey.unreadable} of the videos that were looked at cannot be read")
    lines += [f"note: {note}" for note in survey.notes[:5]]
    if is_long(survey) and survey.class_names:
        lines.append("note: the videos are long, and clips are taken anywhere in them: cut them to their actions first")
    return "\n".join(map(printable, lines))


def _commands(
    videos: Path, name: str, data: str, survey: Survey, machine: Machine, classifies: bool, lists: dict[str, Path]
) -> list[str]:
    from data_tools.init.choices import shard_options

    options = shard_options(survey, machine)

    def shards(split: str, part: Part) -> str:
        chosen = ["--annotations", str(lists[split])] if part.list_file else list(part.options)
        made = ["motionmae", "shards", "make", "folder", "--videos", str(videos), *chosen]
        return shlex.join([*made, "--out", f"{data}/{split}", *options])

    many = f"torchrun --nproc-per-node {machine.gpus} -m motionmae" if machine.gpus > 1 else "motionmae"
    commands = [shards("train", survey.train)]
    if survey.held_out:
        commands.append(shards("val", survey.held_out))
    commands += [f"{many} pretrain --config {name}.yaml", f"motionmae report runs/{name}"]
    if classifies:
        commands.append(f"{many} finetune --config finetune_{name}.yaml")
        commands += [f"motionmae test runs/finetune_{name}"] if survey.held_out else []
        parts = (survey.held_out, survey.train)
        example = next(video.path for part in parts if part for video in part.videos if video.path)
        commands.append(shlex.join(["motionmae", "predict", f"runs/finetune_{name}", str(example)]))
        commands.append(f"motionmae export runs/finetune_{name} --format hf --out {name}_hf")
    return commands


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EXAMPLES)
