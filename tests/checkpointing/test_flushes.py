"""Order of writes, flushes and renames in the save of a rank's tensors."""

from pathlib import Path

import pytest
import torch

from motionmae.checkpointing.sharded import write_tensors
from motionmae.runs.checkpoint_store import CheckpointStore
from tests.flushes import record

WEIGHTS = "model-00000-of-00001.safetensors"


def test_tensors_are_flushed_before_the_checkpoint_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = CheckpointStore(tmp_path / "checkpoints")
    new = store.begin(10, 1)
    found = record(tmp_path, monkeypatch)
    entry = write_tensors(new / WEIGHTS, {"a": torch.zeros(3)}, ("a",))
    store.commit(new, 10, {}, [entry])
    commit = found.index(("rename", "checkpoints/step-00000010"))
    assert found.index(("fsync", f"checkpoints/{new.name}/{WEIGHTS}")) < commit
    assert found[-1] == ("fsync", "checkpoints")
