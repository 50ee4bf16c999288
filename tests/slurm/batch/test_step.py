import asyncio
import json
from pathlib import Path

import pytest

from motionmae.runs.history import START_VARIABLE
from slurm.batch.protocol import VARIABLE, Invitation
from slurm.batch.step import Command, Step
from tests.slurm.fakes.controller import Controller

INVITATION = Invitation(host="10.0.0.1", port=5, token="a" * 64, launch=3, standby=False, heartbeat_seconds=5)


def _run(folder: Path, script: str, then: str = "") -> tuple[Step, float]:
    """Start a step whose srun is a shell script, do what ``then`` says, and wait for its end."""
    srun = folder / "srun"
    srun.write_text(f"#!/bin/sh\n{script}\n")
    srun.chmod(0o755)

    async def run() -> tuple[Step, float]:
        step, changed = Step(3, ["node1", "node2"], standby=False), asyncio.Event()
        await step.start(Command([str(srun), "--output", "x"], ["python", "train"], 4), INVITATION, 2, changed)
        began = asyncio.get_running_loop().time()
        if then == "kill":
            await step.kill("7", 5)
        elif then == "end":
            await step.end(0.2)
        seconds = asyncio.get_running_loop().time() - began
        assert step._reader is not None
        await step._reader
        assert changed.is_set()
        return step, seconds

    return asyncio.run(run())


def test_a_step_has_a_place_for_every_rank_on_the_named_nodes() -> None:
    command = Command(["srun", "--output", "%j_%t.out", "--unbuffered"], ["python", "train"], ranks_per_node=4)
    assert command.on(["node1", "node3"], standby=False) == [
        "srun", "--output", "%j_%t.out", "--unbuffered", "--overlap", "--no-kill", "--nodes=2",
        "--nodelist=node1,node3", "--ntasks=8", "--ntasks-per-node=4", "--distribution=block", "python", "train",
    ]  # fmt: skip
    assert command.on(["node1"], standby=True)[2] == "%j_standby_%N_%t.out"
    assert command.srun[2] == "%j_%t.out"
    assert "%t" not in " ".join(Command(["srun"], ["python"]).on(["node1"], standby=True))


def test_the_ranks_get_the_invitation_and_the_number_of_the_attempt(tmp_path: Path) -> None:
    step, _ = _run(tmp_path, f'echo ${VARIABLE} >&2; echo ${START_VARIABLE} $PATH >&2; echo "$@" >&2; exit 3')
    assert Invitation.model_validate(json.loads(step.lines[0])) == INVITATION
    assert step.lines[1].startswith("2 /")
    assert step.lines[2].endswith(
        "--nodelist=node1,node2 --ntasks=8 --ntasks-per-node=4 --distribution=block python train"
    )
    assert (step.status, step.killed) == (3, False)


def test_a_srun_that_is_killed_has_the_status_of_a_shell(tmp_path: Path) -> None:
    assert _run(tmp_path, "kill -TERM $$")[0].status == 143


def test_messages_of_srun_are_printed_at_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step, _ = _run(tmp_path, "echo 'srun: error: node2: task 1: Killed' >&2; printf 'half' >&2")
    assert step.lines == ["srun: error: node2: task 1: Killed", "half"]
    assert capsys.readouterr().err == "srun: error: node2: task 1: Killed\nhalf"


def test_a_killed_step_says_no_more(tmp_path: Path, controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    step, _ = _run(tmp_path, "sleep 0.2; echo 'srun: error: node2: task 1: Killed' >&2", then="kill")
    assert (step.lines, step.killed, step.status) == ([], True, 0)
    assert capsys.readouterr().err == ""
    assert controller.calls == ["scancel --signal=KILL 7.5"]


def test_a_srun_that_stays_is_killed(tmp_path: Path) -> None:
    step, seconds = _run(tmp_path, "exec sleep 60", then="end")
    assert step.status == 137
    assert 0.2 <= seconds < 50


def test_a_step_whose_number_nobody_told_or_that_has_ended_is_not_signalled(controller: Controller) -> None:
    async def run() -> None:
        await Step(1, [], False).kill("7", None)
        await Step(1, [], False, status=0).kill("7", 5)

    asyncio.run(run())
    assert controller.calls == []


def test_the_first_step_of_a_job_has_the_number_0_and_is_killed(controller: Controller) -> None:
    async def run() -> None:
        await Step(1, [], False).kill("7", 0)

    asyncio.run(run())
    assert controller.calls == ["scancel --signal=KILL 7.0"]


def test_a_signal_goes_to_one_step(controller: Controller) -> None:
    Step.signal("7", 4, "TERM")
    assert controller.calls == ["scancel --signal=TERM 7.4"]
