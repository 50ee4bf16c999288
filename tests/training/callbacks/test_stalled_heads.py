from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.config import Config
from motionmae.distributed.process_group import distributed
from motionmae.distributed.watchdog import Watchdog
from motionmae.models.motionmae import Losses, MotionMAE, build_motionmae
from motionmae.runs.events import drop_repeated, read_rows
from motionmae.training.callbacks.stalled_heads import StalledHeads
from motionmae.training.setup import run_training
from tests.training.launch import run_ranks
from tests.training.run_workers import run_all
from tests.training.shards import STEPS, make_shards, tiny_run

STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def silent(config: Config) -> MotionMAE:
    """Return a model whose heads predict zero, the mean of every normalised target."""
    model = build_motionmae(config)
    for decoder in model.decoders.values():
        for head in decoder.heads.values():  # type: ignore[union-attr, operator]
            torch.nn.init.zeros_(head.weight)
    return model


def perfect(*_: Any) -> Losses:
    return Losses(*torch.full((3,), 0.01))


def warnings_of(config: Config, engine: Callable[..., Losses], rows: list[tuple[int, int]]) -> list[str]:
    """Return the messages after ``rows`` of (step, steps since the last row)."""
    messages: list[str] = []
    with (
        distributed(config.engine) as rank,
        closing(Watchdog(config.watchdog, Path("unused"), messages.append)) as watchdog,
    ):
        callback = StalledHeads(config, engine, rank, STEPS_PER_EPOCH, watchdog, messages.append)  # type: ignore[arg-type]
        for step, steps in rows:
            callback.on_log({"step": step, "steps": steps})
    return messages


def test_a_head_that_predicts_the_mean_is_named_once_with_the_settings_that_help(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 30}, model={"pos_embed": "separate"})
    space, time = warnings_of(config, silent(config), [(4, 4), (8, 4), (12, 4)])
    assert space == (
        "the space head explains 0.0 % of the variance of its target after 48 clips, little more than the target's "
        "mean: start a new run with model.patch_embed_init=whitened, model.decoder_init=local"
    )
    assert time.startswith("the time head explains")
    assert time.endswith("model.decoder_init=local, target.motion_norm=clip")


def test_shards_that_cannot_be_read_for_the_check_do_not_end_the_run(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 6})
    config = config.updated({"data.shards": "http://127.0.0.1:1/gone", "data.remote_retries": 0})
    (message,) = warnings_of(config, silent(config), [(6, 6)])
    assert message.startswith("the decoder heads were not checked (")
    assert message.endswith("); training continues")


def test_a_head_that_has_left_the_mean_is_not_named(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 30})
    assert warnings_of(config, perfect, [(4, 4), (8, 4)]) == []


@pytest.mark.parametrize("rows", [[(4, 4)], [(8, 1), (9, 1)]])
def test_nothing_is_checked_before_the_clips_or_in_a_later_attempt(
    shards: Path, tmp_path: Path, rows: list[tuple[int, int]]
):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 30})
    assert warnings_of(config, silent(config), rows) == []


def test_nothing_is_checked_during_the_warm_up_or_if_disabled(shards: Path, tmp_path: Path):
    warming = tiny_run(shards, tmp_path, log={"stalled_head_clips": 6}, optim={"warmup_epochs": 2})
    assert warnings_of(warming, silent(warming), [(5, 5)]) == []
    assert len(warnings_of(warming, silent(warming), [(6, 6)])) == 2
    disabled = tiny_run(shards, tmp_path, log={"stalled_head_clips": 0})
    assert warnings_of(disabled, silent(disabled), [(5, 5), (10, 5)]) == []


@pytest.mark.parametrize("kind", ["frame", "motion"])
def test_only_trained_heads_are_named(shards: Path, tmp_path: Path, kind: str):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 6}, target={"kind": kind})
    (message,) = warnings_of(config, silent(config), [(6, 6)])
    assert message.startswith("the space head" if kind == "frame" else "the time head")


def test_a_run_prints_the_warning(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_training(tiny_run(shards, tmp_path, log={"stalled_head_clips": 24}, optim={"base_lr": 1e-6}))
    assert capsys.readouterr().out.count("the time head explains") == 1


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_check_changes_no_loss(shards: Path, tmp_path: Path, zero_stage: int):
    configs = [
        tiny_run(shards, tmp_path / str(clips), log={"stalled_head_clips": clips}, engine={"zero_stage": zero_stage})
        for clips in (0, 24)
    ]
    assert run_ranks(2, run_all, configs)[0] == ["FINISHED"] * 2
    without, checked = (
        list(drop_repeated(read_rows(Path(config.output_dir) / "tiny" / "metrics.jsonl"))) for config in configs
    )
    assert len(checked) == STEPS
    assert [row["loss_time"] for row in without] == [row["loss_time"] for row in checked]
