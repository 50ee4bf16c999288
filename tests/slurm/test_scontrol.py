"""What is read from Slurm's commands, and with which words they are asked."""

import subprocess
import sys
import time
from datetime import datetime

import pytest

from motionmae.errors import UserError
from slurm import scontrol
from slurm.scontrol import JobState, expand_nodes, find_job, parse_job, show_job
from tests.slurm.fakes.controller import NO_ANSWER, REFUSED, Controller

LINE = (
    "JobId=7 JobName=demo UserId=me(1) QOS=normal JobState=RUNNING Reason=None Dependency=(null) Restarts=3 "
    "ExitCode=0:0 EndTime=2026-11-30T12:00:00 PreemptTime=None Partition=big ReqNodeList=(null) ExcNodeList=n[8-9] "
    "NodeList=n[1-2] BatchHost=n1 NumNodes=2 Account=vision Reservation=(null)"
)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    found = Controller()
    monkeypatch.setattr(scontrol, "_run", found.run)
    return found


def test_all_fields_of_a_running_job() -> None:
    job = parse_job(LINE)
    assert (job.name, job.detail, job.restarts, job.exit_code) == ("RUNNING", "n[1-2]", 3, None)
    assert (job.out_of_time, job.preempted, job.cancelled) == (False, False, False)
    assert (job.excluded, job.batch_host, job.nodes) == (("n8", "n9"), "n1", 2)
    assert job.queue == {"partition": "big", "account": "vision", "qos": "normal"}
    end = datetime(2026, 11, 30, 12).timestamp()
    assert job.seconds_left == pytest.approx(end - time.time(), abs=30)


def test_a_reservation_belongs_to_the_queue() -> None:
    assert parse_job(LINE.replace("Reservation=(null)", "Reservation=ours")).queue["reservation"] == "ours"
    assert parse_job("JobState=PENDING").queue == {}


@pytest.mark.parametrize(
    ("change", "seconds_known"),
    [(("x", "x"), True), (("RUNNING", "PENDING"), False), (("2026-11-30T12:00:00", "Unknown"), False),
     (("2026-11-30T12:00:00", "UNLIMITED"), False)],
)  # fmt: skip
def test_only_a_running_job_has_seconds_left(change: tuple[str, str], seconds_known: bool) -> None:
    assert (parse_job(LINE.replace(*change)).seconds_left != float("inf")) is seconds_known


@pytest.mark.parametrize(
    ("state", "text", "exit_code"),
    [
        ("COMPLETED", "0:0", 0), ("FAILED", "2:0", 2), ("FAILED", "0:9", 137), ("CANCELLED", "0:15", 143),
        ("TIMEOUT", "0:0", 0), ("NODE_FAIL", "1:0", 1), ("OUT_OF_MEMORY", "0:125", 253), ("BOOT_FAIL", "", None),
        ("DEADLINE", "0:0", 0), ("PREEMPTED", "0:15", 143), ("RUNNING", "2:0", None), ("PENDING", "2:0", None),
        ("COMPLETING", "2:0", None),
    ],
)  # fmt: skip
def test_a_job_that_has_ended_has_an_exit_code(state: str, text: str, exit_code: int | None) -> None:
    line = LINE.replace("JobState=RUNNING", f"JobState={state}").replace("ExitCode=0:0", f"ExitCode={text}")
    job = parse_job(line)
    assert job.exit_code == exit_code
    assert job.active is (state in ("RUNNING", "PENDING", "COMPLETING"))
    assert job.detail == ("" if state in ("PENDING", "COMPLETING") else "n[1-2]")


@pytest.mark.parametrize(
    ("state", "reason", "preempt", "flags"),
    [
        ("TIMEOUT", "None", "None", (True, False, False)),
        ("COMPLETING", "TimeLimit", "None", (True, False, False)),
        ("RUNNING", "None", "2026-11-30T12:00:00", (False, True, False)),
        ("COMPLETING", "None", "2026-11-30T12:00:00", (False, True, False)),
        ("COMPLETING", "None", "None", (False, False, True)),
        ("CANCELLED", "NodeDown", "None", (False, False, False)),
    ],
)
def test_who_has_ended_a_job(state: str, reason: str, preempt: str, flags: tuple[bool, ...]) -> None:
    line = LINE.replace("JobState=RUNNING", f"JobState={state}").replace("Reason=None", f"Reason={reason}")
    job = parse_job(line.replace("PreemptTime=None", f"PreemptTime={preempt}"))
    assert (job.out_of_time, job.preempted, job.cancelled) == flags


def test_a_comparison_ignores_what_follow_does_not_print() -> None:
    assert parse_job(LINE) == JobState("RUNNING", "n[1-2]", 3)
    assert parse_job(LINE) != JobState("RUNNING", "n[1-2]", 2)
    assert JobState("FAILED", exit_code=1) != JobState("FAILED", exit_code=2)


def test_a_silent_controller_knows_no_job(controller: Controller) -> None:
    assert show_job("7") is None
    controller.answers["scontrol show job -o 7"] = LINE
    assert show_job("7") == JobState("RUNNING", "n[1-2]", 3)
    assert controller.calls == ["scontrol show job -o 7"] * 2


def test_a_forgotten_job_is_looked_up_in_the_accounting(controller: Controller) -> None:
    controller.answers["scontrol"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    controller.answers["sacct"] = "COMPLETED|0:0\n"
    assert find_job("7") == JobState("COMPLETED", exit_code=0)
    assert controller.calls[-1] == "sacct -X -n -P -o State,ExitCode -j 7"
    controller.answers["sacct"] = ""
    assert find_job("7") == JobState("GONE")
    controller.answers["scontrol"] = LINE
    assert find_job("7").name == "RUNNING"
    controller.answers["scontrol"] = NO_ANSWER
    with pytest.raises(UserError, match=r"Slurm does not answer \(`scontrol show job 7`: Unable to contact"):
        find_job("7")


def test_the_words_of_further_commands(controller: Controller) -> None:
    controller.answers |= {"squeue": "9\n10\n", "sinfo": "n1\nn2\n", "scontrol write": "#!/bin/sh\n"}
    assert scontrol.waiting_jobs("demo") == ["9", "10"]
    assert scontrol.usable_nodes("big") == ["n1", "n2"]
    assert scontrol.batch_script("7") == "#!/bin/sh\n"
    assert scontrol.cancel("7", "8")
    assert controller.calls == [
        "squeue -h --me -n demo -t PENDING -o %i",
        "sinfo -h -N -p big -r -t idle,mixed,alloc,comp,resv -o %N",
        "scontrol write batch_script 7 -",
        "scancel 7 8",
    ]
    controller.answers |= {"scancel": REFUSED, "scontrol write": (1, "half", "Access denied")}
    assert not scontrol.cancel("7")
    assert scontrol.batch_script("7") == ""


def test_a_job_could_start_if_sbatch_would_take_it(controller: Controller) -> None:
    assert scontrol.could_start("#!/bin/sh", ["n1", "n2"])
    assert controller.calls == ["sbatch --parsable --test-only --exclude=n1,n2"]
    assert controller.scripts == ["#!/bin/sh"]
    controller.answers["sbatch"] = REFUSED
    assert not scontrol.could_start("#!/bin/sh", [])
    done = scontrol.submit_script("#!/bin/sh")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Access denied")


def test_commands_that_fail_have_the_status_of_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    echo = [sys.executable, "-c", "import os, sys; print(os.environ.get('A'), sys.stdin.read()); sys.exit(3)"]
    done = scontrol._run(echo, "given", {"A": "b"})
    assert (done.returncode, done.stdout) == (3, "b given\n")
    missing = scontrol.run_command("no-such-command", "x")
    assert (missing.returncode, missing.stdout) == (127, "")
    assert missing.stderr == "no-such-command is not installed on this machine"
    (tmp_path / "plain").write_text("")
    assert scontrol.run_command(str(tmp_path / "plain")).returncode == 127
    limits: list[float] = []

    def run(command: list[str], timeout: float, **_: object) -> None:
        limits.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(scontrol.subprocess, "run", run)
    late = scontrol.run_command("scontrol")
    assert (late.returncode, late.stderr, limits) == (124, "no answer within 60 s", [60])


def test_host_lists_are_expanded() -> None:
    assert expand_nodes("") == []
    assert expand_nodes("n[08-10],m") == ["n08", "n09", "n10", "m"]


@pytest.mark.parametrize("down", ["DOWN", "FAIL", "NOT_RESPONDING", "IDLE*"])
def test_each_down_node_is_found(controller: Controller, down: str) -> None:
    controller.answers["scontrol show node"] = f"NodeName=n1 State=IDLE\nNodeName=n2 State={down} Reason=a b [root@x]\n"
    assert scontrol.down_nodes(["n1", "n2"]) == {"n2": "a b"}
