"""The runner of the checks: what goes wrong in one check does not hide the others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from motionmae.gpu_checks import runner
from motionmae.gpu_checks.check import Check, CheckResult, Setting, Verdict
from motionmae.gpu_checks.runner import Runner, kill_marked, single_process_environment
from tests.training.launch import wait_until


def check(name: str, limit: int = 60, number: object = "", **options: object) -> Check:
    """A check called ``name`` and ``number``, without a GPU."""
    function = f"tests.gpu_checks.faulty:{name}"
    return Check(f"{name}{number}", function, "", limit, **({"needs_gpu": False} | options))


def run(folder: Path, *checks: Check, device: str = "cpu", seconds: float = 300, ranks: int = 1) -> list[CheckResult]:
    reported: list[CheckResult] = []
    setting = Setting(device=device, quick=True, folder=folder, ranks=ranks)
    results = Runner(setting, seconds, reported.append).run(checks)
    assert {result.name for result in reported} == {result.name for result in results}
    return results


def is_alive(file: Path) -> bool:
    """Whether the process in ``file`` runs. A container may have no init that reaps the killed."""
    try:
        return psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_each_fault_is_one_failure_and_the_next_check_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_START_SECONDS", 10)
    names = ("succeed", "fail", "crash", "raise_error", "hang", "cannot", "succeed")
    checks = [check(name, number=n, limit=1 if name == "hang" else 60) for n, name in enumerate(names)]
    results = run(tmp_path, *checks, device="cuda")
    assert [result.name for result in results] == [check.name for check in checks]
    passed, failed, not_run = Verdict.PASSED, Verdict.FAILED, Verdict.NOT_RUN
    assert [result.verdict for result in results] == [passed, failed, failed, failed, failed, not_run, passed]
    first, two, crashed, raised, hung, cannot, _ = results
    assert first.figures["rate"] == 0.3333
    assert (first.figures["nan"], first.figures["path"], first.not_run) == ("nan", "x", ("a part",))
    assert (two.problem, two.figures) == ("2 is not 3", {"two": 2})
    assert "ended with status -6" in crashed.problem
    assert "device-side assert" in crashed.problem
    assert raised.problem == "ZeroDivisionError: \x1b[31mdivision"  # escaped where it is printed
    assert "did not end within 11 s" in hung.problem
    assert cannot.problem == "no such device"
    assert not is_alive(tmp_path / "child")


def test_checks_share_a_process_until_one_must_be_alone(tmp_path: Path) -> None:
    checks = [check("succeed", number=number, alone=number == 1) for number in range(4)]
    assert len({result.figures["pid"] for result in run(tmp_path, *checks)}) == 1  # a CPU has no such reason
    (tmp_path / "gpu").mkdir()
    results = run(tmp_path / "gpu", *checks, device="cuda")
    first, alone, *last = (result.figures["pid"] for result in results)
    assert len({first, alone, *last}) == 3
    assert last[0] == last[1]


def test_a_check_that_the_total_time_cuts_off_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LEAST_SECONDS", 0)
    (cut,) = run(tmp_path, check("hang"), seconds=2)
    assert (cut.verdict, cut.problem) == (Verdict.NOT_RUN, "the total time was over: add --only hang")


def test_no_check_runs_after_the_failure_of_an_essential_one(tmp_path: Path) -> None:
    results = run(tmp_path, check("succeed", essential=True), check("fail", essential=True), check("succeed", number=2))
    assert [result.verdict for result in results] == [Verdict.PASSED, Verdict.FAILED, Verdict.NOT_RUN]
    assert results[-1].problem == "fail failed"


def test_what_cannot_run_is_never_passed(tmp_path: Path) -> None:
    results = run(
        tmp_path,
        check("succeed", number=1, needs_gpu=True),
        check("succeed", number=2, needs_gpus=True),
        check("succeed", number=3, only_full=True),
        check("succeed", number=4, min_seconds=301),
    )
    assert [result.verdict for result in results] == [Verdict.NOT_RUN] * 4
    assert [result.name for result in results] == [f"succeed{number}" for number in range(1, 5)]
    reasons = ["needs a GPU", "needs several GPUs", "left out by --quick", "no time was left: add --only succeed4"]
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


def test_a_terminated_command_leaves_no_process_behind(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.gpu_checks.test_runner import check, run\n"
        f"run(Path({str(tmp_path)!r}), check('hang'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=runner.ROOT)
    wait_until(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text(), "the check to begin")
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not is_alive(tmp_path / "child")
