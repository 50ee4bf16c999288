import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from motionmae.errors import UserError
from slurm import job_state, scontrol, submission
from slurm.job_state import JobRecord, current_job, follow, state_of, submission_lock
from slurm.scontrol import JobState, parse_job
from tests.slurm.fakes.controller import NO_ANSWER, REFUSED, Controller
from tests.slurm.fakes.jobs import Starter

LOCAL = JobRecord("local", "123", "/logs/123_0_log.out", "/code", 1.0)
SLURM = JobRecord("slurm", "123", "/logs/123_0_log.out", "/code", 1.0)


def _program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_record_comes_back_as_written(tmp_path: Path) -> None:
    assert JobRecord.read(tmp_path) is None
    replace(LOCAL, exit_code=3).write(tmp_path)
    assert JobRecord.read(tmp_path) == replace(LOCAL, exit_code=3)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(UserError, match=r"job\.json is damaged"):
        JobRecord.read(tmp_path)


def test_the_lock_keeps_others_out_until_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_state, "LOCK_TIMEOUT", 0.2)
    with (
        submission_lock(tmp_path),
        pytest.raises(UserError, match="is in use by a submission"),
        submission_lock(tmp_path),
    ):
        pass
    with submission_lock(tmp_path):
        pass


def test_a_local_job_runs_for_as_long_as_its_controller_lives(tmp_path: Path) -> None:
    with submission_lock(tmp_path) as lock:
        controller = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
        LOCAL.write(tmp_path)
    assert state_of(LOCAL, tmp_path).active
    controller.kill()
    controller.communicate()
    assert state_of(LOCAL, tmp_path) == JobState("GONE", "its controller was killed")
    replace(LOCAL, exit_code=0).write(tmp_path)
    assert state_of(LOCAL, tmp_path).name == "COMPLETED"
    replace(LOCAL, exit_code=3).write(tmp_path)
    assert state_of(LOCAL, tmp_path) == JobState("FAILED", exit_code=3)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (
            "JobId=7 JobName=a JobState=RUNNING Reason=None Restarts=2 ExitCode=0:0 ReqNodeList=(null) NodeList=n[1-2]",
            JobState("RUNNING", "n[1-2]", 2),
        ),
        (
            "JobId=7 JobState=PENDING Reason=Resources Restarts=0 ExitCode=0:0 NodeList=(null)",
            JobState("PENDING", "Resources"),
        ),
        (
            "JobId=7 JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=2:0 NodeList=n1",
            JobState("FAILED", "n1", 0, 2),
        ),
        ("JobId=7 JobState=CANCELLED Reason=None ExitCode=0:15 NodeList=n1", JobState("CANCELLED", "n1", 0, 143)),
    ],
)
def test_reads_scontrol(line: str, state: JobState) -> None:
    assert parse_job(line) == state


CANCELLED = "JobId=7 JobState=COMPLETING Reason=None Dependency=(null) Restarts=0 ExitCode=0:0 PreemptTime=None"


@pytest.mark.parametrize(
    ("line", "cancelled"),
    [
        # as Slurm 22.05 shows a job while its processes end
        (CANCELLED, True),
        (CANCELLED.replace("PreemptTime=None", "PreemptTime=2026-11-30T12:15:11"), False),
        (CANCELLED.replace("Reason=None", "Reason=TimeLimit"), False),
        (CANCELLED.replace("JobState=COMPLETING", "JobState=CANCELLED"), True),
        (CANCELLED.replace("JobState=COMPLETING", "JobState=RUNNING"), False),
    ],
)
def test_a_job_that_a_person_cancelled_is_told_from_one_that_slurm_ended(line: str, cancelled: bool) -> None:
    assert parse_job(line).cancelled is cancelled


def test_reads_what_a_review_needs_of_a_waiting_job() -> None:
    job = parse_job("JobId=7 QOS=(null) JobState=PENDING Partition=low Account=vision NumNodes=2-3 ExcNodeList=n[1-2]")
    assert (job.nodes, job.excluded) == (2, ("n1", "n2"))
    assert job.queue == {"partition": "low", "account": "vision"}


def test_the_current_job_of_a_chain_is_the_active_one_or_the_last_that_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = JobRecord("slurm", "7", f"{tmp_path}/7_0_log.out", "/code", 1.0, chain=("6", "7", "8", "9"), links=2)
    assert record.waiting == ("8", "9")
    assert record.at("9").waiting == ()
    states = {"7": "PREEMPTED", "8": "PENDING", "9": "PENDING"}
    monkeypatch.setattr(job_state, "find_job", lambda job_id: JobState(states[job_id]))
    link, state = current_job(record, tmp_path)
    assert (link.job_id, link.log, state.name) == ("8", f"{tmp_path}/8_0_log.out", "PENDING")
    states.update({"8": "COMPLETED", "9": "CANCELLED"})
    (tmp_path / "8_0_log.out").touch()
    link, state = current_job(record, tmp_path)
    assert (link.job_id, state.name) == ("8", "COMPLETED")
    record.write(tmp_path)
    assert JobRecord.read(tmp_path) == record


def test_only_a_job_that_may_run_again_is_active() -> None:
    assert all(JobState(name).active for name in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"))
    assert not any(JobState(name).active for name in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "GONE"))


def test_the_accounting_knows_a_job_that_the_controller_forgot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    _program(tmp_path, "sacct", "echo 'CANCELLED by 0|0:15'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert state_of(SLURM, tmp_path) == JobState("CANCELLED", exit_code=143)
    _program(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert state_of(SLURM, tmp_path) == JobState("GONE")


def test_a_silent_controller_does_not_mean_that_the_job_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="Unable to contact"):
        state_of(SLURM, tmp_path)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Job update not available right now, the DB index is being set, try again in a bit", True),
        ("Unable to contact slurm controller", True),
        ("Access/permission denied", False),
    ],
)
def test_a_change_is_tried_again_where_slurm_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, accepted: bool
) -> None:
    tried = tmp_path / "tried"
    _program(tmp_path, "scontrol", f"[ -e {tried} ] && exit 0; touch {tried}; echo '{answer}' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert scontrol.update("7", {"StartTime": "now+60"}) is accepted


@pytest.mark.parametrize(
    ("act", "status", "last"),
    [
        ("done", 0, "COMPLETED"),
        ("exit 3", 3, "the run failed; the logs of all ranks are in"),
        ("exit 143", 143, "was stopped as asked, after a save; the same command resumes it"),
    ],
)
def test_following_ends_with_the_job_s_own_status(
    act: str, status: int, last: str, tmp_path: Path, start: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    record = start(tmp_path, {0: [act]})
    assert follow(record, tmp_path) == status
    lines = capsys.readouterr().out.splitlines()
    assert any("Loading pickle" in line for line in lines)
    assert last in lines[-1]


@pytest.mark.parametrize(
    "change",
    [{"job_id": "1; rm -rf ~"}, {"job_id": 7}, {"cluster": "x"}, {"log": "a\nb"}, {"code": "\x1b"}, {"further": 1}],
    ids=str,
)
def test_a_record_of_another_form_is_refused_in_one_sentence(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(asdict(LOCAL) | change))
    with pytest.raises(UserError, match=r"job\.json is damaged") as caught:
        JobRecord.read(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, '{"job_id": ' + "9" * 5000 + "}"])
def test_any_other_json_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(UserError, match=r"job\.json is damaged"):
        JobRecord.read(tmp_path)


def test_of_two_submissions_at_once_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, site, config = submission.read(["--cluster", "local", "--config", "demo"])
    monkeypatch.setattr(submission, "check_inputs", lambda *_: None)
    config.run_folder.mkdir(parents=True)
    JobRecord("local", "9", "/logs/9_0_log.out", "/code", 1.0).write(config.run_folder)
    with pytest.raises(UserError, match="was submitted by another command a moment ago"):
        submission.submit(arguments, site, config, None)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    found = Controller()
    monkeypatch.setattr(scontrol, "_run", found.run)
    return found


def test_a_busy_controller_is_asked_three_times_for_a_change(controller: Controller) -> None:
    asked = "scontrol update JobId=7 StartTime=now+60 ExcNodeList="
    assert scontrol.update("7", {"StartTime": "now+60", "ExcNodeList": ""})
    assert controller.calls == [asked]
    for answer, count in ((NO_ANSWER, 3), ((1, "", "Socket timed out"), 3), (REFUSED, 1)):
        controller.answers[asked] = answer
        controller.calls.clear()
        assert not scontrol.update("7", {"StartTime": "now+60", "ExcNodeList": ""})
        assert controller.calls == [asked] * count
    controller.answers[asked] = [NO_ANSWER, ""]
    assert scontrol.update("7", {"StartTime": "now+60", "ExcNodeList": ""})


def test_a_requeue_waits_ten_minutes_for_the_controller(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(scontrol.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scontrol.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert scontrol.requeue("7")
    controller.answers["scontrol requeue 7"] = REFUSED
    assert not scontrol.requeue("7")
    assert now == [0]
    controller.answers["scontrol requeue 7"] = [NO_ANSWER, NO_ANSWER, ""]
    assert scontrol.requeue("7")
    assert now == [10]
    controller.answers["scontrol requeue 7"] = NO_ANSWER
    assert not scontrol.requeue("7")
    assert now == [10 + 605]


def test_a_job_that_is_submitted_inside_a_job_inherits_none_of_its_variables(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    controller.answers["sbatch"] = "12;cluster\n"
    done = scontrol.submit_script("#!/bin/sh", "--begin=now")
    assert (done.stdout, done.returncode, controller.calls) == ("12", 0, ["sbatch --parsable --begin=now"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    scontrol.submit_script("#!/bin/sh")
    outside, inside = controller.environments
    assert outside is None
    assert inside is not None
    assert {key for key in inside if key.startswith("SLURM")} == {"SLURM_CONF"}
    assert inside["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("state", "reason", "down"),
    [
        ("IDLE", "", {}), ("MIXED+DRAIN", "Reason=busy [root@now]", {}), ("ALLOCATED", "", {}),
        ("DOWN", "Reason=power supply [root@now]", {"n1": "power supply"}), ("FAIL", "", {"n1": "it does not answer"}),
        ("IDLE*", "Reason=Not responding [slurm@now]", {"n1": "Not responding"}),
        ("IDLE+NOT_RESPONDING", "", {"n1": "it does not answer"}), ("DOWN*+DRAIN", "Reason=dead", {"n1": "dead"}),
    ],
)  # fmt: skip
def test_nodes_that_are_down(controller: Controller, state: str, reason: str, down: dict[str, str]) -> None:
    controller.answers["scontrol show node -o n1,n2"] = f"NodeName=n1 State={state} {reason}\nNodeName=n2 State=IDLE\n"
    assert scontrol.down_nodes(["n1", "n2"]) == down


def test_the_queue_is_asked_once_for_many_jobs(controller: Controller) -> None:
    controller.answers["squeue --noheader --format %i|%r --jobs 7,8"] = "7|None\n8|Resources\n"
    assert scontrol.queued_jobs(["7", "8"]) == {"7": "None", "8": "Resources"}
    controller.answers["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    assert scontrol.queued_jobs(["9"]) == {}
    controller.answers["squeue"] = NO_ANSWER
    assert scontrol.queued_jobs(["9"]) is None
