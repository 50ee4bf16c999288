import pytest
import torch
import torch.distributed as dist

from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason, LeaseLost, Requeue, StorageError, classify_error
from tests.training.engine_workers import lose_peer
from tests.training.launch import Ranks


@pytest.mark.parametrize("how", ["dies", "sleeps", "is not there"])
def test_a_dead_silent_or_absent_peer_is_a_lost_peer(how: str):
    ranks = Ranks(2, lose_peer, how)
    assert ranks.first_result() == EndReason.LOST_PEERS


def test_errors_are_classified_by_their_cause():
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


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ..."),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        torch.AcceleratorError("CUDA error: unknown error"),
        torch.AcceleratorError("CUDA error: uncorrectable NVLink error detected during the execution"),
        RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        dist.DistBackendError("NCCL error ... ncclUnhandledCudaError: Cuda failure 214 'uncorrectable ECC error ...'"),
        dist.DistBackendError("ncclUnhandledCudaError: a call failed.\nCuda failure 999 'unknown error'"),
    ],
    ids=str,
)
def test_a_hardware_fault_of_a_gpu_is_a_bad_node(error: Exception):
    assert classify_error(error) is EndReason.BAD_NODE
    chained = ValueError("the step failed")
    chained.__cause__ = error
    assert classify_error(chained) is EndReason.BAD_NODE


@pytest.mark.parametrize("text", ["an illegal memory access was encountered", "device-side assert triggered"])
def test_a_fault_of_the_program_on_a_gpu_is_not_a_bad_node(text: str):
    assert classify_error(torch.AcceleratorError(f"CUDA error: {text}")) is EndReason.CRASHED


def test_end_reasons_decide_exit_code_requeue_badput_and_metrics():
    table = {
        end.value: (end.exit_code, end.requeue, end.badput, end.run_state, end.restart_reason) for end in EndReason
    }
    assert table == {
        "finished": (0, Requeue.NEVER, "downtime", "finished", "finished"),
        "preempted": (75, Requeue.ALWAYS, "queue_wait", "preempted", "preempted"),
        "stopped": (81, Requeue.NEVER, "downtime", "stopped", "stopped"),
        "terminated": (143, Requeue.BACKOFF, "queue_wait", "stopped", "stopped"),
        "user_error": (2, Requeue.NEVER, "downtime", "failed", "failed"),
        "lease_lost": (80, Requeue.NEVER, "downtime", "failed", "failed"),
        "no_storage": (74, Requeue.BACKOFF, "downtime", "failed", "failed"),
        "lost_peers": (76, Requeue.BACKOFF, "downtime", "failed", "failed"),
        "bad_node": (77, Requeue.BACKOFF, "downtime", "failed", "failed"),
        "hung": (79, Requeue.BACKOFF, "downtime", "failed", "hung"),
        "crashed": (1, Requeue.ONCE, "downtime", "failed", "failed"),
        "time_limit": (1, Requeue.BACKOFF, "downtime", "failed", "failed"),
        "killed": (137, Requeue.BACKOFF, "downtime", "failed", "lost"),
        "node_down": (1, Requeue.ALWAYS, "downtime", "failed", "lost"),
        "not_started": (1, Requeue.BACKOFF, "downtime", "failed", "failed"),
    }


LOST = (
    "connection closed by peer", "connection reset by peer", "connection refused", "connection was likely closed",
    "broken pipe", "timed out waiting", "socket timeout", "gloo connectfullmesh failed", "ncclremoteerror",
    "ncclsystemerror", "nccl communicator was aborted", "watchdog caught collective operation timeout",
)  # fmt: skip


@pytest.mark.parametrize("message", LOST)
def test_messages_of_a_lost_peer(message: str):
    assert classify_error(RuntimeError(f"[gloo] {message.title()}: rank 3")) is EndReason.LOST_PEERS
    assert classify_error(ValueError(message)) is EndReason.CRASHED


HARDWARE = (
    "Uncorrectable ECC error", "uncorrectable NVLink error", "unspecified launch failure", "hardware error",
    "hardware stack error", "GPU is lost", "GPU has fallen off the bus",
    "CUDA-capable device(s) is/are busy or unavailable", "no CUDA-capable device is detected",
    "system not yet initialized", "CUDA error: unknown error", "Cuda failure 'unknown error'",
)  # fmt: skip


@pytest.mark.parametrize("message", HARDWARE)
def test_messages_of_broken_hardware(message: str):
    assert classify_error(RuntimeError(f"rank 3: {message}!")) is EndReason.BAD_NODE
    assert classify_error(ValueError(message)) is EndReason.CRASHED


@pytest.mark.parametrize("kind", [dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError])
def test_errors_of_torch_s_network(kind: type[Exception]):
    class Own(kind):  # type: ignore[misc,valid-type]
        pass

    assert classify_error(kind("x")) is classify_error(Own("x")) is EndReason.LOST_PEERS


def test_the_outermost_known_cause_counts():
    inner, outer = LeaseLost("x"), RuntimeError("connection refused")
    outer.__cause__ = inner
    assert classify_error(outer) is EndReason.LOST_PEERS
    inner.__cause__ = RuntimeError("connection refused")
    assert classify_error(inner) is EndReason.LEASE_LOST
    context = ValueError("x")
    context.__context__ = LeaseLost("x")  # while it was handled, not because of it
    assert classify_error(context) is EndReason.CRASHED


def test_only_these_ends_come_after_a_save():
    assert [reason.value for reason in EndReason if reason.saved] == ["finished", "preempted", "stopped", "terminated"]


def test_every_end_has_words_of_its_own():
    descriptions = {reason.value: reason.description for reason in EndReason}
    assert len(set(descriptions.values())) == len(descriptions)
    assert descriptions["killed"] == "a rank was killed"
    assert descriptions["node_down"] == "a node went down"
