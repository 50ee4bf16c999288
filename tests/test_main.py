"""The command line as people call it: processes, exit status, sentences."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from motionmae.__main__ import build_parser, main
from motionmae.config import save_config
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import current_rows, read_rows
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


def test_help_of_every_command_comes_without_importing_torch():
    script = (
        "import sys; from motionmae.__main__ import build_parser; build_parser(); "
        "sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_help_shows_examples_that_parse(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    examples = re.findall(r"-m motionmae (pretrain --config .*)", capsys.readouterr().out)
    assert len(examples) == 4
    for example in examples:
        assert build_parser().parse_args(example.split()).config


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
    folder = RunFolder.of(config.output_dir, config.name)
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
    assert len(current_rows(RunFolder.of(config.output_dir, config.name).metrics)) == STEPS


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
