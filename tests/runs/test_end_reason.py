import pytest
import torch
import torch.distributed as dist

from motionmae.errors import UserError
from motionmae.runs.end_reason import Exit, LeaseLost, StorageError, exit_of
from tests.training.engine_workers import lose_peer
from tests.training.launch import Ranks


@pytest.mark.parametrize("how", ["dies", "sleeps", "is not there"])
def test_a_peer_that_dies_or_does_not_answer_or_never_came_is_a_lost_peer(how: str):
    ranks = Ranks(2, lose_peer, how)
    assert ranks.first_result() == Exit.LOST_PEERS


def test_errors_have_the_class_of_what_caused_them():
    assert exit_of(UserError("no shards")) is Exit.USER_ERROR
    assert exit_of(LeaseLost("taken over")) is Exit.LEASE_LOST
    assert exit_of(StorageError("stale file handle")) is Exit.NO_STORAGE
    assert exit_of(dist.DistBackendError("NCCL error")) is Exit.LOST_PEERS
    assert exit_of(KeyError("loss")) is Exit.CRASHED
    assert exit_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is Exit.CRASHED
    assert exit_of(torch.OutOfMemoryError("out of memory")) is Exit.CRASHED
    assert exit_of(ConnectionError("Connection closed by peer")) is Exit.CRASHED  # of a data server, not of a rank
    chained = UserError("the save failed")
    chained.__cause__ = RuntimeError("[gloo/pair.cc] Connection closed by peer")
    assert exit_of(chained) is Exit.USER_ERROR
