"""Validation in real runs: it changes no bit of training, is repeated after a stop, and keeps the best checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.__main__ import main
from motionmae.checkpointing.load_weights import load_state
from motionmae.config import Config
from motionmae.data.open_shards import load_manifest
from motionmae.evaluation.mean_baseline import explained_variance
from motionmae.runs.best_checkpoint import best_in
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import drop_repeated, read_rows
from tests.training.launch import Ranks, run_ranks
from tests.training.run_workers import run_all
from tests.training.save_workers import pretrain_on_bad_samples
from tests.training.shards import STEPS, make_shards, tiny_run
from tests.training.validation.workers import run_and_die_in_validation, run_with_stop_in_validation

PLAIN = {"mixup": 0.0, "cutmix": 0.0, "drop_path": 0.2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder / "train", classes=3), make_shards(folder / "val", shards=1, samples=7, classes=3)


def finetuning(shards: tuple[Path, Path], runs: Path, **validation: Any) -> Config:
    config = tiny_run(shards[0], runs, optim={"ema_decay": 0.5, "base_lr": 0.2})
    settings = {"shards": str(shards[1]), "every_steps": 2, **validation}
    changes = {f"finetune.{key}": value for key, value in PLAIN.items()}
    changes |= {f"validation.{key}": value for key, value in settings.items()}
    return config.updated({"task": "finetune", "checkpoint.every_steps": 3, **changes})


def losses(config: Config) -> list[float]:
    return [row["loss"] for row in drop_repeated(read_rows(RunFolder(config.run_folder).metrics))]


def validations(config: Config) -> dict[int, dict[str, Any]]:
    """Return the last validation of each step."""
    events = read_rows(RunFolder(config.run_folder).events)
    keys = ("loss", "top1", "top5", "is_best", "videos")
    return {row["step"]: {key: row[key] for key in keys} for row in events if row["kind"] == "validation"}


def weights(config: Config) -> dict[str, torch.Tensor]:
    return load_state(config.run_folder).state


def assert_same_training(one: Config, other: Config) -> None:
    assert losses(one) == losses(other)
    assert len(losses(one)) == STEPS
    before, after = weights(one), weights(other)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.fixture(scope="module")
def undisturbed(shards: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = finetuning(shards, tmp_path_factory.mktemp("runs"))
    assert run_ranks(1, run_all, [config])[0] == ["FINISHED"]
    return config


def test_validation_changes_no_bit_of_training(undisturbed: Config, shards: tuple[Path, Path], tmp_path: Path):
    without = finetuning(shards, tmp_path).updated({"validation.shards": ""})
    assert run_ranks(1, run_all, [without])[0] == ["FINISHED"]
    assert_same_training(undisturbed, without)
    assert list(validations(undisturbed)) == [2, 4, 6, 8, 9]
    assert not validations(without)
    rows = {row["step"]: row for row in read_rows(RunFolder(undisturbed.run_folder).metrics)}
    assert rows[4]["val_top1"] == validations(undisturbed)[4]["top1"]
    assert rows[4]["val_step"] == 4
    assert "val_top1" not in rows[3]


def test_the_figures_are_those_of_the_test_command_and_the_best_is_kept_and_found(
    undisturbed: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, store = undisturbed.run_folder, CheckpointStore(RunFolder(undisturbed.run_folder).checkpoints)
    best = best_in(store)
    found = validations(undisturbed)
    assert best is not None
    assert best.value == max(figures["top1"] for figures in found.values())
    assert best.step == next(step for step, figures in found.items() if figures["top1"] == best.value)
    protocol = ["--shards", undisturbed.validation.shards, "--clips", "1", "--crops", "1"]
    for step in ("best", "9"):
        out = tmp_path / f"{step}.json"
        assert main(["test", str(run), "--step", step, *protocol, "--json", str(out)]) == 0
        figures = json.loads(out.read_text())
        assert figures["step"] == (best.step if step == "best" else 9)
        assert figures["top1"] == pytest.approx(found[figures["step"]]["top1"], abs=1e-9)
        assert figures["top5"] == pytest.approx(found[figures["step"]]["top5"], abs=1e-9)
    saved = json.loads((run / "validation/step-00000009.json").read_text())
    assert sum(map(sum, saved["confusion"])) == 7
    assert sum(saved["confusion"][n][n] for n in range(3)) == pytest.approx(saved["top1"] * 7 / 100)
    assert (run / "validation/step-00000009.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["checkpoints", str(run)]) == 0
    assert "best by validation" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_stop_in_a_validation_leaves_it_to_the_next_attempt(
    undisturbed: Config, shards: tuple[Path, Path], tmp_path: Path
):
    config = finetuning(shards, tmp_path)
    assert run_ranks(1, run_with_stop_in_validation, config, 4, 2) == ["PREEMPTED"]
    assert list(validations(config)) == [2]
    assert run_ranks(1, run_with_stop_in_validation, config, STEPS, 1) == ["PREEMPTED"]
    assert list(validations(config)) == [2, 4, 6, 8]
    assert run_ranks(1, run_all, [config])[0] == ["FINISHED"]
    assert_same_training(config, undisturbed)
    assert validations(config) == validations(undisturbed)
    rows = {row["val_step"]: row for row in read_rows(RunFolder(config.run_folder).metrics) if "val_step" in row}
    expected = validations(undisturbed)
    assert {step: row["val_top1"] for step, row in rows.items()} == {
        step: expected[step]["top1"] for step in (2, 4, 6, 8)
    }
    assert rows[4]["step"] == 5  # the validation of step 4 was left to the second attempt
    assert best_in(CheckpointStore(RunFolder(config.run_folder).checkpoints)) == best_in(
        CheckpointStore(RunFolder(undisturbed.run_folder).checkpoints)
    )


def test_a_run_that_dies_in_a_validation_repeats_it(undisturbed: Config, shards: tuple[Path, Path], tmp_path: Path):
    config = finetuning(shards, tmp_path)
    ranks = Ranks(1, run_and_die_in_validation, config, 8)
    with pytest.raises(AssertionError, match="rank 0 died"):
        ranks.results()
    assert run_ranks(1, run_all, [config])[0] == ["FINISHED"]
    assert_same_training(config, undisturbed)
    assert validations(config) == validations(undisturbed)


def test_early_stopping_ends_a_run_as_finished_and_more_patience_continues_it(
    undisturbed: Config, shards: tuple[Path, Path], tmp_path: Path
):
    config = finetuning(shards, tmp_path, patience=1, min_delta=100.0)  # only the first one is a new best
    assert run_ranks(1, run_all, [config, config])[0] == ["FINISHED", "FINISHED"]
    assert list(validations(config)) == [2, 4]
    assert losses(config) == losses(undisturbed)[:4]
    assert run_ranks(1, run_all, [config.updated({"validation.patience": 0})])[0] == ["FINISHED"]
    assert_same_training(config, undisturbed)


@pytest.mark.long
def test_a_rollback_to_a_checkpoint_of_other_held_out_videos_begins_a_new_search_for_the_best(
    shards: tuple[Path, Path], tmp_path: Path
):
    config = finetuning(shards, tmp_path).updated({"optim.epochs": 6, "checkpoint.keep_last": 20})
    ranks = Ranks(1, run_and_die_in_validation, config, 4)
    with pytest.raises(AssertionError, match="rank 0 died"):
        ranks.results()  # its last checkpoint is that of step 3
    other = config.updated({"validation.shards": str(shards[0])})
    assert run_ranks(1, pretrain_on_bad_samples, other, 3, 13) == ["FINISHED"]
    events = [row for row in read_rows(RunFolder(config.run_folder).events) if row["kind"] == "rollback"]
    assert [row["step"] for row in events] == [3]
    newest = CheckpointStore(RunFolder(config.run_folder).checkpoints).complete()[-1]
    protocol = newest.state()["trainer"]["validation"]["protocol"]
    assert load_manifest(str(shards[0])).fingerprint[:12] in protocol


@pytest.mark.long
def test_explained_variance_is_the_figure_of_the_report(shards: tuple[Path, Path], tmp_path: Path):
    validation = {"shards": str(shards[1]), "every_steps": 4, "knn_train": str(shards[0]), "heldout_clips": 20}
    config = tiny_run(shards[0], tmp_path, validation=validation)
    without = tiny_run(shards[0], tmp_path / "without")
    assert run_ranks(1, run_all, [config, without])[0] == ["FINISHED"] * 2
    assert_same_training(config, without)
    *_, last = (row for row in read_rows(RunFolder(config.run_folder).events) if row["kind"] == "validation")
    assert last["step"] == STEPS
    found = explained_variance(config.run_folder, str(shards[1]), clips=20)
    for head in ("space", "time"):
        assert last[f"explained_{head}"] == pytest.approx(found[head], abs=1e-6)
    assert last["loss"] == pytest.approx(last["loss_space"] + last["loss_time"], abs=1e-6)
    out = tmp_path / "knn.json"
    argv = ["knn", str(config.run_folder), "--train", str(shards[0]), "--test", str(shards[1]), "--json", str(out)]
    assert main(argv) == 0
    assert json.loads(out.read_text())["top1"] == last["knn"]
