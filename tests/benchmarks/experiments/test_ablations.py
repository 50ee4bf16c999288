"""The ablations as one command: rows, their remaining jobs, the table."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.experiments import ablations
from benchmarks.experiments.ablations import AblationRow, main, select
from motionmae.config import load_config, save_config
from motionmae.config.load import known_configs
from motionmae.runs.directory import RunFolder
from slurm import submission
from slurm.job_state import JobRecord
from slurm.scontrol import JobState

LOCAL = ("--", "--cluster", "local", "--nodes", "1")


def remaining(row: AblationRow) -> list[str]:
    return [job.kind for job in row.remaining_jobs()]


def finish(argv: Sequence[str], runs: Path, *overrides: str) -> RunFolder:
    """Write the config and the events of a finished run."""
    _, _, config = submission.read([*argv, f"output_dir={runs}", *overrides])
    run = RunFolder(config.run_folder)
    run.path.mkdir(parents=True, exist_ok=True)
    save_config(config, run.config)
    row = {"attempt": "a", "time": 1.0, "step": 9}
    run.events.write_text("".join(f"{json.dumps({**row, 'kind': kind})}\n" for kind in ("start", "finish")))
    return run


def leave_test(row: AblationRow, **changes: object) -> None:
    """Write the report of a test of that finished run."""
    views = load_config(str(row.finetuning.config)).test
    report = {"top1": 68.25, "step": 9, "views": f"{views.clips} x {views.crops}", "shards": views.shards, **changes}
    out = row.finetuning.path / "test/step9"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report))


def test_every_ablation_config_is_a_row_with_a_recipe_and_every_setting_is_trained_once(tmp_path: Path):
    found = select([], tmp_path)
    assert sorted(row.config for row in found) == [name for name in known_configs() if name.startswith("ablations/")]
    for row in found:
        assert row.title.startswith("Table ")
        _, recipe, name, init = row.jobs()[1].argv
        config = load_config(recipe, [name, init])
        pretrained = load_config(row.config)
        assert (config.task, config.model.size, config.data.shards) == (
            "finetune", pretrained.model.size, pretrained.data.shards,
        )  # fmt: skip
        assert config.finetune.init == str(tmp_path / row.name)
    assert [row.paper for row in found if row.config.startswith("ablations/table10")] == [68.4, 68.0]
    assert (len(found), len({row.name for row in found})) == (30, 22)
    assert {row.name for row in found if row.paper == 68.4} == {"table5a_both"}  # the paper's default


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that reach slurm/submit.py, which answers with jobs 1, 2, ... (the lab submits real ones)."""
    found: list[list[str]] = []

    def take(argv: list[str]) -> int:
        found.append(list(argv))
        _, _, config = submission.read(argv)
        run = Path(config.output_dir) / config.name
        run.mkdir(parents=True, exist_ok=True)
        JobRecord("slurm", str(len(found)), "log", str(run / "code"), 0.0).write(run)
        return 0

    monkeypatch.setattr(ablations.submission, "run_command", take)
    return found


def test_a_row_is_three_jobs_each_after_the_one_before(
    tmp_path: Path, submitted: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    scripts: list[str] = []
    monkeypatch.setattr(ablations, "sbatch", lambda script: scripts.append(script) or "33")
    monkeypatch.setattr(ablations, "state_of", lambda record, run: JobState("PENDING"))
    assert main(["--tables", "5a", "10", "--runs", str(tmp_path), "--", "--partition", "gpu", "--nodes", "2"]) == 0
    pretraining, finetuning = submitted[:2]
    assert pretraining[:2] == ["--config", "ablations/table5a_both"]
    assert pretraining[-4:] == ["--partition", "gpu", "--nodes", "2"]
    assert finetuning[:3] == ["--config", "finetune_vitb_ssv2", "name=table5a_both_finetune"]
    assert finetuning[-4:] == ["--dependency", "afterok:1", "--sbatch", "kill-on-invalid-dep=yes"]
    trained = ["table5a_both", "table5a_frame", "table5a_motion", "table10_shared"]  # table10_divided is the first
    assert [argv[1] for argv in submitted[::2]] == [f"ablations/{name}" for name in trained]
    assert len(scripts) == 4
    first = scripts[0].splitlines()
    for line in ("dependency=afterok:2", "kill-on-invalid-dep=yes", "partition=gpu", "nodes=2", "gpus-per-node=8"):
        assert f"#SBATCH --{line}" in first
    assert first[-1].startswith("exec srun ")
    assert first[-1].endswith(f"-m motionmae test {tmp_path.resolve()}/table5a_both_finetune")


def test_a_dry_run_says_which_jobs_it_would_start(
    tmp_path: Path, submitted: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    row = AblationRow("ablations/table10_shared", tmp_path)
    finish(row.jobs()[0].argv, tmp_path)
    assert main(["--tables", "10", "--runs", str(tmp_path), "--dry-run", "--", "--partition", "gpu"]) == 0
    shown = capsys.readouterr().out
    assert submitted == []
    assert f"--config ablations/table5a_both output_dir={tmp_path} --partition gpu" in shown
    assert "--config ablations/table10_shared " not in shown  # it is pre-trained
    assert f"motionmae test {tmp_path}/table10_shared_finetune" in shown
    assert "5 jobs would start, for 2 distinct runs in 2 rows" in shown
    assert main(["--tables", "10", "--runs", str(tmp_path), "--dry-run", "--", "optim.epoch=3"]) == 2
    assert "did you mean optim.epochs?" in capsys.readouterr().err


def test_on_this_machine_one_job_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done: list[str] = []
    statuses = {"table5a_both": 3}  # the first pre-training fails

    def train(argv: list[str]) -> int:
        assert argv[-1] == "--follow"
        _, _, config = submission.read(argv)
        done.append(config.name)
        if status := statuses.get(config.name, 0):
            return status
        finish(argv, tmp_path)
        return 0

    def run_test(command: list[str], **_: object) -> SimpleNamespace:
        done.append(f"test {Path(command[-1]).name}")
        return SimpleNamespace(returncode=statuses.get(done[-1], 0))

    monkeypatch.setattr(ablations.submission, "run_command", train)
    monkeypatch.setattr(ablations.subprocess, "run", run_test)
    argv = ["--tables", "10", "--runs", str(tmp_path), *LOCAL]
    assert main(argv) == 2
    assert done == ["table5a_both", "table10_shared", "table10_shared_finetune", "test table10_shared_finetune"]
    assert "table5a_both ended with status 3" in capsys.readouterr().err
    statuses |= {"table5a_both": 0, "test table10_shared_finetune": 1}
    done.clear()
    assert main(argv) == 2
    assert done == [
        "table5a_both",
        "table5a_both_finetune",
        "test table5a_both_finetune",
        "test table10_shared_finetune",
    ]
    assert "the test of" in capsys.readouterr().err

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablations.submission, "run_command", interrupt)
    shutil.rmtree(tmp_path / "table5a_both")
    assert main(argv) == 130


def test_a_row_is_done_by_a_test_of_its_own_finished_runs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = AblationRow("ablations/table10_divided", tmp_path)
    assert remaining(row) == ["pre-training", "fine-tuning", "test"]
    finish(row.jobs()[0].argv, tmp_path, "optim.epochs=50")
    assert remaining(row) == ["fine-tuning", "test"]
    finish(row.jobs()[1].argv, tmp_path)
    assert remaining(row) == ["test"]
    for changes in ({"step": 3}, {"views": "1 x 1"}, {"shards": "elsewhere"}):
        leave_test(row, **changes)
        assert remaining(row) == ["test"], changes
    leave_test(row)
    assert remaining(row) == []
    argv = ["--tables", "5a", "10", "--runs", str(tmp_path), "--collect", "--markdown", str(tmp_path / "table.md")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "table.md").read_text()
    assert shown.count("| 68.2 | 68.4 | done | table5a_both |") == 2  # in each of the tables
    assert "| 68.0 | pre-training missing |" in shown
    assert shown.count("Not as configured") == 1
    assert "Not as configured: optim.epochs=50 in table5a_both." in shown

    finish(
        row.jobs()[1].argv,
        tmp_path,
        "optim.epochs=9",
        "test.clips=1",
        "test.crops=1",
        "data.shards=/other",
        "data.beton=/x",
    )
    leave_test(row)
    assert remaining(row) == []
    assert main(argv) == 0
    others = "test.clips=1, test.crops=1, data.shards=/other, data.beton=/x, optim.epochs=9"
    assert f"Not as configured: {others} in table5a_both_finetune." in capsys.readouterr().out
    others = f"finetune.init={shutil.copytree(row.pretraining.path, tmp_path / 'old' / row.name)}"
    finish(row.jobs()[1].argv, tmp_path, others)
    assert row.overridden()["table5a_both_finetune"] == others

    finish(row.jobs()[0].argv, tmp_path, "target.kind=motion")  # another run of that name
    assert AblationRow("ablations/table5a_both", tmp_path).state() == "run with other settings"
    assert main(argv) == 0
    assert "Not counted: " in capsys.readouterr().out
    assert main([*argv[:3], "--runs", str(tmp_path), *LOCAL, "data.shards=gone"]) == 2
    assert "was trained with target.kind=motion (the row has both): move the run away" in capsys.readouterr().err


def test_a_row_that_cannot_be_submitted_does_not_keep_others_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--tables", "10", "--runs", str(tmp_path), "--", "data.shards=gone", "--cluster", "local"]) == 2
    shown = capsys.readouterr()
    for name in ("table5a_both", "table10_shared"):
        assert f"error: ablations/{name}: " in shown.err
    assert shown.out.count("pre-training missing") == 2
    assert main(["--tables", "10", "--runs", str(tmp_path), "--", "--follow"]) == 2
    assert "--follow after -- cannot apply to all jobs" in capsys.readouterr().err


def test_a_table_that_is_not_in_the_paper(capsys: pytest.CaptureFixture[str]):
    assert main(["--tables", "6"]) == 2
    assert "choose from 5a, 5b, 5c, 5d, 5e, 5f, 7, 8, 9, 10" in capsys.readouterr().err
