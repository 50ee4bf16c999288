"""A reader of the documentation: a folder in which the commands of the pages run, one after the other."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data.s3_server import s3_server
from tests.data.shard_server import serving
from tests.docs.code_blocks import ROOT, Block, blocks_of, shell_lines
from tests.docs.small_commands import small
from tests.evaluation.davis.sequences import write_list, write_sequence

LINKS = {
    "data/k400": "toy", "SHARDS": "data/toy/val", "VIDEOS": "videos", "runs/NAME": "tiny_toy", "runs/A": "tiny_toy",
    "runs/B": "vitb_k400", "ut_interaction": "data/toy_videos",
}  # fmt: skip
"""Names that stand for a reader's own files, and what a test puts there."""
PROGRAMS = {
    "motionmae": f"exec {shlex.quote(sys.executable)} -m motionmae",
    "torchrun": f"exec {shlex.quote(sys.executable)} -m torch.distributed.run",
    "python": f"exec {shlex.quote(sys.executable)}",
    "python3": f"exec {shlex.quote(sys.executable)}",
    # an installation must not change the environment of the tests
    "pip": f"PIP_DRY_RUN=${{PIP_DRY_RUN-1}} exec {shlex.quote(sys.executable)} -m pip",
    "apt-get": "exec /usr/bin/apt-get --simulate",
}
"""Shell scripts with the names of the programs that the pages call."""
SETUP = """\
motionmae pretrain --config vitb_k400
motionmae finetune --config finetune_vitb_k400
motionmae shards make folder --videos ut_interaction --split train --out data/ut_interaction/train
motionmae shards make folder --videos ut_interaction --split val --out data/ut_interaction/val
motionmae pretrain --config tiny_ut_interaction
"""
"""What pages take for granted: runs of the README's large configs, and small real data."""
MAX_SECONDS = 1800
"""Limit of a block. Some take minutes of a core, which the Slurm lab may leave no more than a tenth of."""
CLOUD = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Reader:
    """
    Attributes:
        variables: environment variables of all commands.
        names: names in the pages that stand for something of the reader's, and what is there in the test.
    """

    folder: Path
    variables: dict[str, str]
    names: dict[str, str]

    def run_page(self, page: Path) -> None:
        """Run the blocks of a page one after the other."""
        for block in runnable(page):
            self.run(block)

    def run(self, block: Block) -> None:
        """Run a block. One that clones the project gets an empty folder."""
        lines = [block.text] if block.language == "python" else [small(line) for line in shell_lines(block)]
        text = "\n".join(lines)
        for name, value in self.names.items():
            text = text.replace(name, value)
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(self.folder), **self.variables}
        with ExitStack() as stack:
            here = self.folder
            if "REPOSITORY" in block.text:
                here = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
                variables |= {"PIP_NO_DEPS": "1", "PIP_DRY_RUN": "0", "PYTHONPATH": ""}
                variables["HOME"] = str(Path.home())  # may name the registry of packages
            shell = ["bash", "-euo", "pipefail", "-c", text]
            command = [sys.executable, "-c", text] if block.language == "python" else shell
            done = subprocess.run(command, cwd=here, env=variables, capture_output=True, text=True, timeout=MAX_SECONDS)
        assert done.returncode == 0, f"{block.place}\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def runnable(page: Path) -> list[Block]:
    return [b for b in blocks_of(page) if b.language in ("bash", "console", "python") and not b.needs]


@contextmanager
def new_reader(folder: Path) -> Iterator[Reader]:
    """Yield a reader who has followed README.md, and has videos and small runs of his own, and servers."""
    (folder / "bin").mkdir()
    for name, command in PROGRAMS.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\n{command} "$@"\n')
        script.chmod(0o755)
    with serving(folder / "data/toy") as server, s3_server() as endpoint:
        variables = {"AWS_ENDPOINT_URL": endpoint, **{f"AWS_{name}": value for name, value in CLOUD.items()}}
        names = {
            "https://data.example.org/toy": server.url,
            "REPOSITORY": str(write_repository(folder / "repository")),
            "/local/": f"{folder}/local/",
        }
        reader = Reader(folder, {**variables, "TMPDIR": str(folder)}, names)
        reader.run_page(ROOT / "README.md")
        _put_own_files(folder)
        reader.run(Block(ROOT / "README.md", 0, "bash", "", SETUP))
        _upload(folder / "data/k400", endpoint)
        yield reader


def _put_own_files(folder: Path) -> None:
    (folder / "videos").mkdir()
    (folder / "local").mkdir()
    videos = sorted((folder / "data/toy_videos/val").rglob("*.mp4"))
    names = ("clip.mp4", "match.mp4", "cat.mp4", "videos/a.mp4", "videos/b.mp4")
    for name, video in zip(names, videos, strict=False):
        shutil.copy(video, folder / name)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    write_sequence(folder / "DAVIS", "walk", 3, 3, (120, 160))
    write_list(folder / "DAVIS", "walk")
    (folder / "docs/measurements").mkdir(parents=True)
    for name in ("evidence.json", "results.md"):
        shutil.copy(ROOT / "docs/measurements" / name, folder / "docs/measurements")


def _upload(folder: Path, endpoint: str) -> None:
    s3fs = pytest.importorskip("s3fs")
    bucket = s3fs.S3FileSystem(key=CLOUD["ACCESS_KEY_ID"], secret=CLOUD["SECRET_ACCESS_KEY"], endpoint_url=endpoint)
    bucket.mkdir("clips")
    bucket.put(f"{folder}/", "clips/k400/", recursive=True)


def write_repository(folder: Path) -> Path:
    """Write the files of this working tree to a new git repository, and return it."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # a file may be deleted and not yet committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "All"]):
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *author, *words], cwd=folder, check=True)
    return folder
