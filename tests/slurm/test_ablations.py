"""The ablations as one command: rows, their next steps, the table."""

import json
from pathlib import Path

import pytest

from motionmae.config import load_config
from motionmae.config.load import known_configs
from slurm import ablations, submit
from slurm.ablations import Row, Stage, main, select
from slurm.record import JobRecord, JobState


def finish(row_folder: Path) -> None:
    row_folder.mkdir(parents=True, exist_ok=True)
    (row_folder / "events.jsonl").write_text('{"kind": "start"}\n{"kind": "finish"}\n')


def test_every_ablation_config_is_a_row_with_a_recipe(tmp_path: Path):
    rows = select([], tmp_path)
    assert sorted(row.config for row in rows) == [name for name in known_configs() if name.startswith("ablations/")]
    for row in rows:
        assert row.title.startswith("Table ")
        _, recipe, name, init = row.finetune_words()
        config = load_config(recipe, [name, init])
        pretrained = load_config(row.config)
        assert (config.task, config.model.size, config.data.shards) == (
            "finetune", pretrained.model.size, pretrained.data.shards,
        )  # fmt: skip
        assert config.finetune.init == str(tmp_path / row.name)
    assert [row.paper for row in rows if row.config.startswith("ablations/table10")] == [68.4, 68.0]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that reach slurm/submit.py, which answers with jobs 1, 2, ... (the lab submits real ones)."""
    found: list[list[str]] = []

    def take(words: list[str]) -> int:
        found.append(list(words))
        _, _, config = submit.read(words)
        cluster = "local" if "local" in words else "slurm"
        run = Path(config.runs) / config.name
        run.mkdir(parents=True, exist_ok=True)
        JobRecord(cluster, str(len(found)), "log", str(run / "code"), 0.0).write(run)
        return 0

    monkeypatch.setattr(ablations.submit, "run_command", take)
    return found


def test_a_row_is_three_jobs_each_after_the_one_before(
    tmp_path: Path, submitted: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    scripts: list[str] = []
    monkeypatch.setattr(ablations, "sbatch", lambda script: scripts.append(script) or "33")
    monkeypatch.setattr(ablations, "state_of", lambda record, run: JobState("PENDING"))
    assert main(["--tables", "10", "--runs", str(tmp_path), "--", "--partition", "gpu", "--nodes", "2"]) == 0
    pretraining, finetuning = submitted[:2]
    assert pretraining[:2] == ["--config", "ablations/table10_divided"]
    assert pretraining[-4:] == ["--partition", "gpu", "--nodes", "2"]
    assert finetuning[:3] == ["--config", "finetune_vitb_ssv2", "name=table10_divided_finetune"]
    assert finetuning[-4:] == ["--dependency", "afterok:1", "--sbatch", "kill-on-invalid-dep=yes"]
    assert [words[1] for words in submitted[2:]] == ["ablations/table10_shared", "finetune_vitb_ssv2"]
    first = scripts[0].splitlines()
    for line in ("dependency=afterok:2", "kill-on-invalid-dep=yes", "partition=gpu", "nodes=2", "gpus-per-node=8"):
        assert f"#SBATCH --{line}" in first
    assert first[-1].startswith("exec srun ")
    assert first[-1].endswith(f"-m motionmae test {tmp_path.resolve()}/table10_divided_finetune")


def test_on_this_machine_each_call_takes_a_row_one_step_further(
    tmp_path: Path, submitted: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    words = ["--tables", "10", "--runs", str(tmp_path), "--", "--cluster", "local", "--nodes", "1"]
    row = Row("ablations/table10_divided", tmp_path.resolve())
    assert row.stage() is Stage.PRETRAIN
    assert main(words) == 0
    assert [line[1] for line in submitted] == ["ablations/table10_divided", "ablations/table10_shared"]

    finish(row.pretraining.path)
    assert row.stage() is Stage.FINETUNE
    submitted.clear()
    assert main(words) == 0
    assert submitted[0][:3] == ["--config", "finetune_vitb_ssv2", "name=table10_divided_finetune"]

    finish(row.finetuning.path)
    assert row.stage() is Stage.TEST
    result = row.testing / "step9_val_2x3" / "report.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"top1": 68.25}))
    assert row.stage() is Stage.DONE
    submitted.clear()
    capsys.readouterr()
    assert main([*words[:4], "--collect", "--markdown", str(tmp_path / "table.md")]) == 0
    assert submitted == []
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "table.md").read_text()
    assert "| 68.2 | 68.4 | done |" in shown
    assert "| 68.0 | to be pre-trained |" in shown


def test_a_row_that_cannot_be_submitted_does_not_keep_others_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--tables", "10", "--runs", str(tmp_path), "--", "data.shards=gone", "--cluster", "local"]) == 2
    shown = capsys.readouterr()
    for row in ("divided", "shared"):
        assert f"error: ablations/table10_{row}: " in shown.err
    assert shown.out.count("to be pre-trained") == 2


def test_a_table_that_is_not_in_the_paper(capsys: pytest.CaptureFixture[str]):
    assert main(["--tables", "6"]) == 2
    assert "choose of 5a, 5b, 5c, 5d, 5e, 5f, 7, 8, 9, 10" in capsys.readouterr().err
