"""Runs of make_shards on small videos, and readers of their output."""

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.commands.functions import make_shards as main
from tests.data_tools.videos import draw_frames, write_sound, write_video

ROOT = Path(__file__).resolve().parents[3]


def small_set(folder: Path, videos: int = 12) -> Path:
    """Write videos of two classes and several codecs, and two files without video."""
    for index in range(videos):
        codec, ending = [("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx-vp9", "webm")][index % 3]
        name = f"{'ab'[index % 2]}/{index:02d}.{ending}"
        write_video(folder / name, draw_frames(6 + index, 64 + 2 * index, 48), codec)
    (folder / "a" / "zero.mp4").touch()
    write_sound(folder / "b" / "sound.m4a")
    return folder


def arguments(videos: Path, out: Path, *more: str) -> list[str]:
    """Arguments for a data set that is described by its folders."""
    return ["folder", "--videos", str(videos), "--out", str(out), *more]


def make(videos: Path, out: Path, *more: str) -> int:
    """Run the command in this process."""
    return main(arguments(videos, out, "--workers", "1", "--samples-per-shard", "3", *more))


def start(videos: Path, out: Path, *more: str, as_folder: bool = True) -> "subprocess.Popen[str]":
    """Start the command in a process."""
    how = ["data_tools/make_shards"] if as_folder else ["-m", "data_tools.make_shards"]
    command = [sys.executable, *how, *arguments(videos, out, "--samples-per-shard", "3", *more)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_on_full_disk(videos: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process that can write no file of more than 40,000 bytes."""
    return subprocess.run(
        [sys.executable, "data_tools/make_shards", *arguments(videos, out, *more)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def fingerprint(out: Path) -> dict[str, str]:
    """Path -> hash of every file below a folder, except locks."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith("lock"))
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def manifest(out: Path) -> dict[str, Any]:
    """The manifest as JSON."""
    return json.loads((out / "manifest.json").read_text())


def quarantine(out: Path) -> dict[str, str]:
    """Path -> reason of each quarantined video."""
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert all(set(row) == {"path", "reason", "error"} and row["error"] for row in rows)
    return {row["path"]: row["reason"] for row in rows}
