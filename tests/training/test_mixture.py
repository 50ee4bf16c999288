"""Runs on a mixture of two folders of shards: counts in the rows, killed and resumed bitwise, on 1, 2 and 3 ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.checkpointing.load_weights import load_state
from motionmae.config import Config
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Row, drop_repeated, read_rows
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks, wait_until
from tests.training.run_workers import run_all
from tests.training.shards import make_shards, tiny_run

BATCH = {"optim": {"global_batch_size": 12, "epochs": 3}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("sources")
    big, small = make_shards(root / "big", samples=9), make_shards(root / "small", samples=9)  # 18 samples each
    return [{"path": str(big), "weight": 3}, {"path": str(small), "weight": 1}]


def rows(config: Config) -> list[Row]:
    return drop_repeated(read_rows(RunFolder(config.run_folder).metrics))


def weights(config: Config) -> dict[str, torch.Tensor]:
    return load_state(CheckpointStore(RunFolder(config.run_folder).checkpoints).complete()[-1].folder).state


def test_killed_and_resumed_bitwise_and_the_same_on_three_ranks(sources: list[dict[str, Any]], tmp_path: Path):
    runs: dict[str, Config] = {}
    for name, micro in (("whole", 3), ("killed", 3), ("three", 2)):
        runs[name] = tiny_run(tmp_path, tmp_path / name, data={"shards": sources}, engine={"micro_batch_size": micro},
                              **BATCH)  # fmt: skip
    assert run_ranks(2, run_all, [runs["whole"]])[0] == ["FINISHED"]
    ranks = Ranks(2, run_training, runs["killed"])
    wait_until(lambda: len(list(read_rows(RunFolder(runs["killed"].run_folder).metrics))) >= 5, "step 5")
    ranks.kill()
    other = runs["killed"].updated({"data.shards": [{**sources[0], "weight": 1.0}, sources[1]]})
    ends = run_ranks(2, run_all, [other, runs["killed"]])[0]
    assert "a mixture with 27 samples of big" in ends[0]
    assert "cannot be resumed with a mixture with 18 samples of big" in ends[0]
    assert ends[1] == "FINISHED"
    assert run_ranks(3, run_all, [runs["three"]])[0] == ["FINISHED"]

    whole = rows(runs["whole"])
    assert [(row["source_samples/big"], row["source_samples/small"]) for row in whole] == [
        (9 * step, 3 * step) for step in range(1, 10)
    ]
    assert whole[-1]["source_passes/big"] == pytest.approx(81 / 18)
    assert [row["loss"] for row in rows(runs["killed"])] == [row["loss"] for row in whole]
    expected = weights(runs["whole"])
    assert all(torch.equal(value, expected[key]) for key, value in weights(runs["killed"]).items())
    assert [row["loss"] for row in rows(runs["three"])] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
