"""The runner of the checks: what goes wrong in one check does not hide the others."""

import os
from pathlib import Path

import psutil
import pytest

from motionmae.gpu_checks import runner
from motionmae.gpu_checks.check import Check, CheckResult, Setting, Verdict
from motionmae.gpu_checks.runner import Runner, kill_marked, single_process_environment


def check(name: str, limit: int = 60, **options: object) -> Check:
    return Check(name, f"tests.gpu_checks.faulty:{name}", "", "", limit, **({"needs_gpu": False} | options))


def run(folder: Path, *checks: Check, device: str = "cpu", seconds: float = 300, ranks: int = 1) -> list[CheckResult]:
    reported: list[CheckResult] = []
    setting = Setting(device=device, quick=True, folder=folder, ranks=ranks)
    results = Runner(setting, seconds, reported.append).run(checks)
    assert reported == results
    return results


def test_each_fault_is_one_failure_and_the_next_check_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_START_SECONDS", 5)
    names = ("succeed", "fail", "crash", "raise_error", "hang", "cannot", "succeed")
    results = run(tmp_path, *(check(name, limit=1 if name == "hang" else 60) for name in names))
    assert [result.name for result in results] == list(names)
    passed, failed, not_run = Verdict.PASSED, Verdict.FAILED, Verdict.NOT_RUN
    assert [result.verdict for result in results] == [passed, failed, failed, failed, failed, not_run, passed]
    first, two, crashed, raised, hung, cannot, _ = results
    assert first.figures["rate"] == 0.3333
    assert (first.figures["nan"], first.figures["path"], first.not_run) == ("nan", "x", ("a part",))
    assert (two.problem, two.figures) == ("2 is not 3", {"two": 2})
    assert "ended with status -6" in crashed.problem
    assert "device-side assert" in crashed.problem
    assert raised.problem == "ZeroDivisionError: \x1b[31mdivision"  # escaped where it is printed
    assert "did not end within" in hung.problem
    assert cannot.problem == "no such device"
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))


def test_checks_share_a_process_until_one_must_be_alone(tmp_path: Path) -> None:
    results = run(tmp_path, *(check("succeed", alone=alone) for alone in (False, True, False, False)))
    first, alone, *last = (result.figures["pid"] for result in results)
    assert len({first, alone, *last}) == 3
    assert last[0] == last[1]


def test_what_cannot_run_is_never_passed(tmp_path: Path) -> None:
    results = run(
        tmp_path,
        check("succeed", needs_gpu=True),
        check("succeed", needs_gpus=True),
        check("succeed", only_full=True),
        check("succeed", least=301),
    )
    assert [result.verdict for result in results] == [Verdict.NOT_RUN] * 4
    reasons = ["needs a GPU", "needs several GPUs", "left out by --quick", "no time was left: add --only succeed"]
    assert [result.problem for result in results] == reasons


def test_a_process_is_no_rank_of_the_launcher_that_started_the_command() -> None:
    given = {"RANK": "0", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "x", "SLURM_NTASKS": "8", "HOME": "/home/me"}
    found = single_process_environment(given)
    assert found["HOME"] == "/home/me"
    assert not found.keys() & {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}
    assert Path(found["PYTHONPATH"].split(os.pathsep)[0]) == runner.ROOT


def test_other_processes_are_not_killed() -> None:
    kill_marked("no process has this mark")
    assert psutil.pid_exists(os.getpid())
