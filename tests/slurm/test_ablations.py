"""The ablations as one command: rows, their next steps, the table."""

import json
from pathlib import Path

import pytest

from motionmae.config import load_config
from motionmae.config.load import known_configs
from slurm import ablations
from slurm.ablations import Row, Stage, main, select


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


def test_each_call_takes_a_row_to_its_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    submitted: list[list[str]] = []
    monkeypatch.setattr(ablations.submit, "main", lambda words: submitted.append(list(words)) or 0)
    words = ["--tables", "10", "--runs", str(tmp_path), "--", "--partition", "gpu"]
    row = Row("ablations/table10_divided", tmp_path.resolve())
    assert row.stage() is Stage.PRETRAIN
    assert main(words) == 0
    assert [line[1] for line in submitted] == ["ablations/table10_divided", "ablations/table10_shared"]
    assert submitted[0][-2:] == ["--partition", "gpu"]

    finish(row.pretraining.path)
    assert row.stage() is Stage.FINETUNE
    submitted.clear()
    assert main(words) == 0
    assert submitted[0][:3] == ["--config", "finetune_vitb_ssv2", "name=table10_divided_finetune"]

    finish(row.finetuning.path)
    assert row.stage() is Stage.TEST
    result = row.finetuning.path / "test" / "step9_val_2x3" / "report.json"
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


def test_a_table_that_is_not_in_the_paper(capsys: pytest.CaptureFixture[str]):
    assert main(["--tables", "6"]) == 2
    assert "choose of 5a, 5b, 5c, 5d, 5e, 5f, 7, 8, 9, 10" in capsys.readouterr().err
