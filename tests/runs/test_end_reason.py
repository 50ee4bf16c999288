import pytest
import torch
import torch.distributed as dist

from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason, LeaseLost, StorageError, classify_error
from tests.training.engine_workers import lose_peer
from tests.training.launch import Ranks


@pytest.mark.parametrize("how", ["dies", "sleeps", "is not there"])
def test_a_peer_that_dies_or_does_not_answer_or_never_came_is_a_lost_peer(how: str):
    ranks = Ranks(2, lose_peer, how)
    assert ranks.first_result() == EndReason.LOST_PEERS


def test_errors_have_the_class_of_what_caused_them():
    assert classify_error(UserError("no shards")) is EndReason.USER_ERROR
    assert classify_error(LeaseLost("taken over")) is EndReason.LEASE_LOST
    assert classify_error(StorageError("stale file handle")) is EndReason.NO_STORAGE
    assert classify_error(dist.DistBackendError("NCCL error")) is EndReason.LOST_PEERS
    assert classify_error(KeyError("loss")) is EndReason.CRASHED
    assert classify_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is EndReason.CRASHED
    assert classify_error(torch.OutOfMemoryError("out of memory")) is EndReason.CRASHED
    assert (
        classify_error(ConnectionError("Connection closed by peer")) is EndReason.CRASHED
    )  # of a data server, not of a rank
    chained = UserError("the save failed")
    chained.__cause__ = RuntimeError("[gloo/pair.cc] Connection closed by peer")
    assert classify_error(chained) is EndReason.USER_ERROR
