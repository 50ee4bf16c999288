"""Best checkpoint of a run, as the newest state that can be read says."""

from pathlib import Path
from typing import Any

import pytest

from motionmae.runs.best_checkpoint import Best, best_in, best_of
from motionmae.runs.checkpoint_store import CheckpointStore

BEST = {"step": 10, "metric": "top1", "value": 80.5}


def save(store: CheckpointStore, step: int, validation: dict[str, Any] | None = None) -> None:
    trainer = {"data_step": step, "epoch": 1.0} | ({} if validation is None else {"validation": validation})
    store.commit(store.begin(step), step, {"trainer": trainer, "config": {}}, [])


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def test_the_newest_checkpoint_that_knows_one_decides(store: CheckpointStore) -> None:
    save(store, 5, {"best": {**BEST, "step": 5}})
    save(store, 10)
    save(store, 20, {"best": BEST, "other": 1})
    save(store, 30)
    assert [best_of(checkpoint) for checkpoint in store.complete()] == [
        Best(5, "top1", 80.5), None, Best(10, "top1", 80.5), None,
    ]  # fmt: skip
    assert best_in(store) == Best(10, "top1", 80.5)


def test_a_best_checkpoint_that_is_gone_is_none(store: CheckpointStore) -> None:
    save(store, 20, {"best": BEST})
    assert best_in(store) is None


@pytest.mark.parametrize("best", [None, {}, {**BEST, "step": -1}, {**BEST, "metric": "x" * 41}, {**BEST, "value": "1"}])
def test_a_state_of_another_form_knows_none(store: CheckpointStore, best: object) -> None:
    save(store, 10, {"best": best})
    assert best_in(store) is None


def test_a_long_name_of_a_figure_fits(store: CheckpointStore) -> None:
    save(store, 10, {"best": {**BEST, "metric": "x" * 40}})
    assert best_in(store) == Best(10, "x" * 40, 80.5)


@pytest.mark.parametrize("damage", ["missing", "link to itself"])
def test_a_state_that_cannot_be_read_knows_none(store: CheckpointStore, damage: str) -> None:
    save(store, 10, {"best": BEST})
    state = store.complete()[0].folder / "state.json"
    state.unlink()
    if damage != "missing":
        state.symlink_to(state.name)  # an error of the file system
    assert best_in(store) is None
