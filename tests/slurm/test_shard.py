import json
import subprocess
import sys

import pytest

from slurm import shard
from tests.commands.functions import submit_shards as main
from tests.data_tools.videos import draw_frames, write_video
from tests.slurm.fakes.jobs import ROOT


def test_the_dry_run_shows_an_array_and_the_job_after_it(tmp_path, capsys):
    command = ["folder", "--videos", "my videos", "--out", str(tmp_path / "out")]
    assert main(["--parts", "3", "--cpus", "5", "--sbatch", "partition=cpu", "--dry-run", "--", *command]) == 0
    array, last = capsys.readouterr().out.split("#!/bin/sh\n")[1:]
    assert "#SBATCH --array=0-2\n" in array
    assert array.rstrip().endswith('--part "$SLURM_ARRAY_TASK_ID/3"')
    assert "#SBATCH --dependency=afterany:ARRAY\n" in last
    assert "--part " not in last
    for script in (array, last):
        assert "--workers 5 folder --videos 'my videos'" in script
        assert "#SBATCH --partition=cpu\n" in script
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--part", "0/2"], ["--no-such-option"]])
def test_a_command_that_make_shards_would_refuse_is_not_submitted(tmp_path, more):
    command = [
        sys.executable,
        "-m",
        "motionmae",
        "shards",
        "submit",
        "--parts",
        "2",
        "--",
        "folder",
        "--videos",
        "v",
        "--out",
        "o",
        *more,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert more[0].removesuffix("s") in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--sbatch", "comment=a\ntouch INJECTED"],
        ["--sbatch", "comment=a\\' --uid=0"],
        ["--sbatch", "x\n=1"],
        ["--time", "1\ntouch INJECTED"],
    ],
)
def test_no_option_ends_its_line_of_the_script(tmp_path, capsys, more):
    command = ["folder", "--videos", "v", "--out", str(tmp_path / "out")]
    assert main(["--parts", "2", *more, "--dry-run", "--", *command]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "is not possible: " in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["a\nb", "a\\'b"])
def test_no_folder_ends_its_line_of_the_script(tmp_path, capsys, name):
    assert main(["--parts", "2", "--dry-run", "--", "folder", "--videos", "v", "--out", str(tmp_path / name)]) == 2
    assert "--output=" in capsys.readouterr().err


def test_the_parts_run_on_this_machine(tmp_path, capsys):
    videos, out = tmp_path / "my videos", tmp_path / "out"
    for name in "abc":
        write_video(videos / f"{name}.mp4", draw_frames(3))
    command = ["folder", "--videos", str(videos), "--out", str(out), "--samples-per-shard", "1"]
    options = ["--cluster", "local", "--parts", "2", "--cpus", "1"]
    assert main([*options, "--dry-run", "--", *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(f"--part {number}/2") for number, line in enumerate(lines)] == [True, True, False]
    assert all(f"--videos '{videos}'" in line for line in lines)
    assert not out.exists()
    assert main([*options, "--sbatch", "partition=cpu", "--", *command]) == 2
    assert "--sbatch is for Slurm" in capsys.readouterr().err
    assert main([*options, "--", *command]) == 0
    assert json.loads((out / "manifest.json").read_text())["shards"][2]["samples"] == 1
    assert "part 1/2: 1 videos in 1 of 3 shards" in (out / ".make_shards" / "logs" / "part-1.log").read_text()
    assert main([*options, "--", "folder", "--videos", str(tmp_path / "gone"), "--out", str(tmp_path / "o")]) == 2


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The scripts that reach sbatch, which answers with the numbers 41, 42, ..."""
    found = []

    def submit(script):
        found.append(script)
        return str(40 + len(found))

    monkeypatch.setattr(shard, "sbatch", submit)
    return found


def test_the_manifest_waits_for_all_parts_however_they_end(tmp_path, capsys, scripts):
    (tmp_path / "videos").mkdir()
    out = tmp_path / "out"
    command = ["folder", "--videos", str(tmp_path / "videos"), "--out", str(out), "--retry"]
    assert main(["--parts", "3", "--time", "1:00:00", "--", *command]) == 0
    parts, last = scripts
    for line in ("#SBATCH --array=0-2", "#SBATCH --job-name=shards-folder", "#SBATCH --cpus-per-task=8",
                 f"#SBATCH --output={out}/.make_shards/logs/part-%a.log", "#SBATCH --time=1:00:00"):  # fmt: skip
        assert line in parts.splitlines()
    assert "#SBATCH --dependency=afterany:41" in last.splitlines()
    assert f"#SBATCH --output={out}/.make_shards/logs/manifest.log" in last.splitlines()
    assert "--array" not in last
    assert "--dependency" not in parts
    assert "--retry" in parts
    assert "--retry" not in last  # the parts have retried
    assert "--workers 8 folder" in last
    assert (out / ".make_shards/logs").is_dir()
    assert f"submitted array 41 with 3 parts, and job 42 for the manifest; logs: {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "command", "sentence"),
    [
        (["--parts", "0"], [], "--parts and --cpus must be at least 1"),
        (["--parts", "2", "--cpus", "0"], [], "--parts and --cpus must be at least 1"),
        (["--parts", "2"], ["--json", "x.json"], "every part of the array would write the --json file"),
        (["--parts", "2"], ["--videos", "gone"], "the folder gone does not exist: set --videos"),
    ],
)
def test_what_cannot_be_an_array_is_refused(tmp_path, capsys, scripts, options, command, sentence):
    (tmp_path / "videos").mkdir()
    given = ["folder", "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), *command]
    assert main([*options, "--", *given]) == 2
    assert sentence in capsys.readouterr().err
    assert scripts == []


@pytest.mark.parametrize(("parts", "cpus"), [("1", "1"), ("1", "2")])
def test_one_part_and_one_core_are_enough(tmp_path, scripts, parts, cpus):
    (tmp_path / "videos").mkdir()
    given = ["folder", "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    assert main(["--parts", parts, "--cpus", cpus, "--", *given]) == 0
    assert "#SBATCH --array=0-0" in scripts[0].splitlines()


@pytest.mark.parametrize(("cores", "cpus", "most"), [(4, 2, 2), (5, 2, 2), (1, 8, 1)])
def test_as_many_parts_run_as_the_cores_allow(tmp_path, monkeypatch, cores, cpus, most):
    running, seen, done = set(), [], []

    class Process:
        def __init__(self, command, **_):
            self.command = command
            running.add(command[0])
            seen.append(len(running))

        def wait(self):
            running.discard(self.command[0])

        def terminate(self):
            assert self.command[0] not in running

    class Done:
        returncode = 5

    def run(command, check):
        assert not running  # all parts have ended
        done.append((command, check))
        return Done

    monkeypatch.setattr(shard.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(shard.subprocess, "Popen", Process)
    monkeypatch.setattr(shard.subprocess, "run", run)
    assert shard._run_here([["a"], ["b"], ["c"], ["last"]], cpus, tmp_path / "logs") == 5
    assert max(seen) == most
    assert done == [(["last"], False)]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["part-0.log", "part-1.log", "part-2.log"]
