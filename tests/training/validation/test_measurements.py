"""Figures of a validation: the same for every number of ranks and ZeRO stage."""

from pathlib import Path

import pytest

from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run
from tests.training.validation.workers import measure_all

UNMIXED = {"finetune.mixup": 0.0, "finetune.cutmix": 0.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder / "train", classes=3), make_shards(folder / "val", shards=2, samples=5, classes=3)


@pytest.mark.long
def test_one_two_and_three_ranks_and_all_stages_give_the_same_figures(shards: tuple[Path, Path], tmp_path: Path):
    train, val = map(str, shards)
    validation = {"shards": val, "heldout_clips": 20, "knn_train": train, "knn_k": 3}
    pretrain = tiny_run(shards[0], tmp_path, validation=validation, engine={"micro_batch_size": 1})
    finetune = pretrain.updated({"validation.knn_train": "", "validation.crops": 3, "task": "finetune", **UNMIXED})
    answers = {}
    for world, stage in ((1, 0), (2, 2), (3, 3)):
        cases = [case.updated({"engine.zero_stage": stage}) for case in (pretrain, finetune)]
        answers[world] = run_ranks(world, measure_all, cases)
    reference = answers[1][0]
    assert set(reference[0][0]) == {"loss", "loss_space", "loss_time", "explained_space", "explained_time", "knn"}
    assert sum(map(sum, reference[1][1])) == 10
    for ranks in answers.values():
        assert all(found == reference for found in ranks)
