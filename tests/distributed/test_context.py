"""Collectives on Python objects between two real ranks."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from motionmae.config import EngineConfig
from motionmae.distributed.context import (
    DistributedContext,
    broadcast_object,
    gather_objects,
    rank_zero_first,
    run_on_rank_zero,
)
from motionmae.distributed.process_group import distributed
from motionmae.errors import UserError
from motionmae.runs.end_reason import StorageError
from tests.training.launch import run_ranks


def _fault_of(rank: DistributedContext, error: Exception) -> tuple[str, str, object]:
    def fail() -> None:
        raise error

    try:
        run_on_rank_zero(rank, fail)
    except (UserError, StorageError) as found:
        return type(found).__name__, str(found), getattr(found, "already_reported", None)
    raise AssertionError("no error")


def _talk(folder: str) -> dict[str, Any]:
    with distributed(EngineConfig(device="cpu")) as rank:
        calls = Path(folder) / "calls"

        def call() -> str:
            seen = calls.read_text() if calls.exists() else ""
            with calls.open("a") as file:
                file.write(str(rank.rank))
            return f"{seen}-{rank.rank}"

        found = {
            "place": (rank.rank, rank.world, rank.local_rank, rank.is_rank_zero, str(rank.device)),
            "gathered": gather_objects({"rank": rank.rank}),
            "broadcast": broadcast_object([f"of {rank.rank}"]),
            "answer": run_on_rank_zero(rank, lambda: f"by {rank.rank}"),
            "user error": _fault_of(rank, UserError("no shards")),
            "storage error": _fault_of(rank, StorageError("stale")),
            "first": rank_zero_first(rank, call),
            "inside": dist.is_initialized(),
        }
        with distributed(EngineConfig(device="cpu")) as again:  # an existing group stays
            found["again"] = again == rank
        found["still"] = dist.is_initialized()
    found["after"] = dist.is_initialized()
    found["variables"] = [os.environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")]
    return found


def test_what_ranks_tell_each_other(tmp_path: Path) -> None:
    zero, one = run_ranks(2, _talk, str(tmp_path))
    assert zero["place"] == (0, 2, 0, True, "cpu")
    assert one["place"] == (1, 2, 1, False, "cpu")
    for rank, found in enumerate((zero, one)):
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["broadcast"] == ["of 0"]
        assert found["answer"] == "by 0"
        assert found["user error"] == ("UserError", "no shards", rank == 1)  # rank 0 prints it
        assert found["storage error"][:2] == ("StorageError", "stale")
        assert found["variables"] == [str(rank), "2", str(rank), "127.0.0.1"]
        assert (found["inside"], found["again"], found["still"], found["after"]) == (True, True, True, False)
    assert (zero["first"], one["first"]) == ("-0", "0-1")


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_zero_is_rank_zero(rank: int) -> None:
    assert DistributedContext(rank, 2, 0, torch.device("cpu")).is_rank_zero is (rank == 0)
