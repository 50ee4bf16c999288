"""The examples of --help run unchanged, except that the first one gets fewer videos to save time."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from motionmae.commands import app

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("toy", "make", "verify", "stats", "preview", "merge")
if importlib.util.find_spec("ffcv") or os.environ.get("CI"):
    TOOLS += ("beton",)


def examples(tool: str) -> list[list[str]]:
    text = app.load_command(f"shards {tool}").epilog
    return [shlex.split(line) for line in re.findall(r"^ +motionmae (shards .*)$", text, re.MULTILINE)]


@pytest.mark.long
def test_all_examples_that_need_no_download_run_in_the_printed_order(tmp_path):
    printed = {tuple(command): None for tool in TOOLS for command in examples(tool)}  # some are printed twice
    runnable = [
        command for command in printed if "data/toy" in " ".join(command) or "data/small_toy" in " ".join(command)
    ]
    for command in runnable:
        fewer = ["--train", "28", "--val", "14"] if command[1] == "toy" else []
        result = subprocess.run(
            [sys.executable, str(ROOT / "motionmae"), *command, *fewer],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, ""), command
    assert {command[1] for command in runnable} == set(TOOLS)
    assert (tmp_path / "sheet.png").exists()


def test_the_examples_of_data_sets_that_must_be_downloaded_parse():
    datasets = {app.parse(command)[1].dataset for command in examples("make") if command[1] == "make"}
    assert datasets == {"k400", "ssv2", "ucf101", "hmdb51", "folder", "webdataset"}
