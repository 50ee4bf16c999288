"""The command line as people call it: processes, exit status, sentences."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.commands import app
from motionmae.config import save_config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.events import drop_repeated, read_rows
from tests.training.launch import ROOT, free_port, wait_until
from tests.training.shards import STEPS, make_shards, tiny_run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "motionmae", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "demoo"], "did you mean demo?"),
        (["--config", "demo", "optim.bach=3"], "did you mean optim.global_batch_size?"),
        (["--config", "demo", "engine.zero_stage=5"], "it must be at least 0 and at most 3"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["pretrain", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrian"], "error: unknown command 'pretrian': did you mean `motionmae pretrain`?"),
        (["verify"], "did you mean `motionmae shards verify`?"),
        (["xyzzy"], "error: unknown command 'xyzzy': `motionmae --help` lists all commands"),
    ],
)
def test_an_unknown_command_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_group_without_a_command_lists_its_commands(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["shards"])
    with pytest.raises(SystemExit, match="0"):
        main(["shards", "--help"])
    shown = capsys.readouterr()
    assert "required: COMMAND: see `motionmae shards --help`" in shown.err
    assert all(f" {name} " in shown.out for name in ("make", "submit", "verify", "stats", "preview", "merge", "toy"))


def test_overrides_may_stand_between_options():
    _, arguments = app.parse(["plan", "optim.epochs=2", "--config", "demo", "seed=1", "--nodes", "1", "seed=2"])
    assert (arguments.config, arguments.nodes) == ("demo", 1)
    assert arguments.overrides == ["optim.epochs=2", "seed=1", "seed=2"]
    assert arguments.argv[0] == "optim.epochs=2"


def test_the_version_names_the_git_revision():
    ended = run("--version")
    assert re.fullmatch(r"motionmae \d+\.\d+\.\d+( \(git [0-9a-f]{40}(, changed)?\))?\n", ended.stdout)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no such thing: do this"), 2, "error: no such thing: do this\n"),
        (UserError("said by rank 0", already_reported=True), 2, ""),
        (LeaseLost("a newer attempt owns runs/x"), 80, "error: a newer attempt owns runs/x\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("stopped: start it again"), 130, "stopped: start it again\n"),
    ],
)
def test_an_error_is_a_message_and_a_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
):
    def fail() -> int:
        raise error

    assert app.run(fail) == status
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]):
    assert app.run(lambda: 1 // 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_broken_pipe_is_silent_only_if_it_is_that_of_stdout(tmp_path: Path):
    reader, writer = os.pipe()
    os.close(reader)
    quiet = subprocess.run(command(), cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (quiet.returncode, quiet.stderr) == (128 + signal.SIGPIPE, b"")
    script = (
        "import sys; from motionmae.commands import app\ndef fail(): raise BrokenPipeError\nsys.exit(app.run(fail))"
    )
    loud = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert loud.returncode == 1
    assert "BrokenPipeError" in loud.stderr


def test_a_package_of_another_project_is_refused(tmp_path: Path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/__init__.py").touch()
    ended = subprocess.run(
        command("plan", "--config", "demo"), cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"the package `slurm` of MotionMAE is {tmp_path}/slurm/__init__.py, but must be in {ROOT}" in ended.stderr


@pytest.mark.parametrize(
    "program", ["slurm/submit.py", "data_tools/make_shards", "data_tools/verify", "-m benchmarks.step"]
)
def test_a_clone_needs_no_installation(program: str, tmp_path: Path):
    libraries = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    module = program.startswith("-m ")
    words = program.split() if module else [str(ROOT / program)]
    ended = subprocess.run(
        [sys.executable, "-S", *words, "--help"],  # -S: an editable installation is not on the path
        cwd=ROOT if module else tmp_path, env={**os.environ, "PYTHONPATH": libraries},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


def complete(line: str) -> list[str]:
    """What the shell would offer at the end of ``line``."""
    with tempfile.NamedTemporaryFile() as file:
        variables = {
            "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": file.name,
        }  # fmt: skip
        subprocess.run(command(), cwd=ROOT, env={**ENVIRONMENT, **variables}, check=True)
        return [word.strip() for word in Path(file.name).read_text().split("\n")]


def test_the_shell_completes_commands_options_and_configs():
    pytest.importorskip("argcomplete")
    assert complete("motionmae pre") == ["pretrain", "predict"]
    assert {"make", "verify", "toy"} <= set(complete("motionmae shards "))
    assert "--dry-run" in complete("motionmae submit --dr")
    assert complete("motionmae pretrain --config tiny_t") == ["tiny_toy"]


@pytest.mark.long
def test_a_run_is_stopped_resumed_and_complete(tmp_path: Path):
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs", optim={"epochs": 60})
    save_config(config, tmp_path / "tiny.yaml")
    arguments = [
        "pretrain",
        "--config",
        str(tmp_path / "tiny.yaml"),
        "engine.zero_stage=2",
        "checkpoint.every_steps=1000",
    ]
    folder = RunFolder(config.run_folder)
    for number, status in ((signal.SIGUSR2, 75), (signal.SIGTERM, 143)):
        rows = len(list(read_rows(folder.metrics)))
        process = subprocess.Popen(command(*arguments), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        wait_until(lambda rows=rows: len(list(read_rows(folder.metrics))) > rows + 2, "a few steps")
        process.send_signal(number)
        assert process.wait(60) == status
    ended = run(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "is complete after 180 steps" in ended.stdout
    assert [row["step"] for row in read_rows(folder.metrics)] == list(range(1, 181))
    again = run(*arguments)
    assert again.returncode == 0
    assert "is complete: all of its 180 steps are done" in again.stdout
    refused = run(*arguments, "seed=1")
    assert refused.returncode == 2
    assert re.fullmatch(r"error: .*seed=1 \(was 0\).*\n", refused.stderr)


@pytest.mark.long
def test_torchrun_starts_two_ranks(tmp_path: Path):
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs")
    save_config(config, tmp_path / "tiny.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    ended = subprocess.run(
        [*torchrun, str(free_port()), "-m", "motionmae", "pretrain", "--config", str(tmp_path / "tiny.yaml")],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "2 x cpu" in ended.stdout
    assert len(drop_repeated(read_rows(RunFolder(config.run_folder).metrics))) == STEPS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config", "tinytoy"], "did you mean tiny_toy?"),
        (["--config", "tiny_toy", "data.shards={}/none"], "/none does not exist"),
    ],
)
def test_two_ranks_say_what_is_wrong_once(words: list[str], sentence: str, tmp_path: Path):
    words = [word.format(tmp_path) for word in [*words, "output_dir={}/runs"]]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command("pretrain", *words),
            cwd=ROOT,
            env={**ENVIRONMENT, **place, "RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert sentence in said[0]
    assert ["error: " in text for text in said] == [True, False]
