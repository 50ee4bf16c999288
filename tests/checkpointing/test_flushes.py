"""Order of writes, flushes and renames in the save of a rank's tensors."""

from pathlib import Path

import pytest
import torch

from motionmae.checkpointing.sharded import write_tensors
from motionmae.runs.checkpoint_store import CheckpointStore
from tests.fault_injection import operations

WEIGHTS = "model-00000-of-00001.safetensors"


def save(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints")
    new = store.begin(10, 1)
    entry = write_tensors(new / WEIGHTS, {"a": torch.zeros(3)}, ("a",))
    store.commit(new, 10, {}, [entry])


@pytest.mark.long
def test_tensors_are_flushed_before_the_checkpoint_gets_its_name(tmp_path: Path):
    found = [(one.name, one.target or one.path) for one in operations(save, tmp_path / "absent", tmp_path / "work")]
    new = "checkpoints/.unfinished-1-step-00000010"
    commit = found.index(("rename", "checkpoints/step-00000010"))
    assert found.index(("open", f"{new}/{WEIGHTS}")) < found.index(("fsync", f"{new}/{WEIGHTS}")) < commit
    assert found[-1] == ("fsync", "checkpoints")
