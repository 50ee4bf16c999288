"""The examples of --help run unchanged, except that the first one gets fewer videos to save time."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.make_shards import cli

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("make_toy_dataset", "make_shards", "verify", "stats", "preview", "merge")
if importlib.util.find_spec("ffcv") or os.environ.get("CI"):
    TOOLS += ("make_beton",)


def examples(tool: str) -> list[list[str]]:
    command = [sys.executable, f"data_tools/{tool}", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in re.findall(r"^ +(python data_tools/.*)$", text, re.MULTILINE)]


@pytest.mark.long
def test_all_examples_that_need_no_download_run_in_the_printed_order(tmp_path):
    (tmp_path / "data_tools").symlink_to(ROOT / "data_tools")
    printed = {tuple(command[1:]): None for tool in TOOLS for command in examples(tool)}  # some are printed twice
    runnable = [
        command for command in printed if "data/toy" in " ".join(command) or "data/small_toy" in " ".join(command)
    ]
    for command in runnable:
        fewer = ["--train", "28", "--val", "14"] if command[0].endswith("make_toy_dataset") else []
        result = subprocess.run(
            [sys.executable, *command, *fewer],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, ""), command
    assert {command[0] for command in runnable} == {f"data_tools/{tool}" for tool in TOOLS}
    assert (tmp_path / "sheet.png").exists()


def test_the_examples_of_data_sets_that_must_be_downloaded_parse():
    datasets = []
    for command in examples("make_shards"):
        if command[1] == "data_tools/make_shards":
            datasets.append(cli.parser().parse_args(command[2:]).dataset)
    assert set(datasets) == {"k400", "ssv2", "ucf101", "hmdb51", "folder"}
