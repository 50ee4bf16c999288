"""Division of a validation's work over the ranks."""

from collections.abc import Generator
from unittest.mock import Mock

import pytest
import torch

from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import Request
from motionmae.runs.end_reason import EndReason
from motionmae.training.validation import rounds
from motionmae.training.validation.rounds import in_rounds
from motionmae.training.validation.validator import StopValidationError


@pytest.mark.parametrize(("own", "idle"), [(0, 0), (1, 1)])
def test_rounds_give_the_items_in_order_and_idle_where_a_rank_has_none(
    own: int, idle: int, monkeypatch: pytest.MonkeyPatch
):
    parts = [["a", "c"], ["b"]]
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine if n == own else parts[n] for n in range(2)])
    rank = DistributedContext(rank=own, local_rank=own, world=2, device=torch.device("cpu"))
    pause, idled = Mock(), Mock()
    assert in_rounds(3, (item for item in parts[own]), rank, pause, idled) == ["a", "b", "c"]
    assert [call[0] for call in pause.method_calls] == ["begin", "end"] * 2
    assert idled.call_count == idle


class StoppingPause:
    def begin(self) -> None: ...

    def end(self) -> None:
        raise StopValidationError(Request(EndReason.PREEMPTED, save=False))


def test_a_stop_closes_what_reads_the_videos():
    closed = False

    def results() -> Generator[int, None, None]:
        nonlocal closed
        try:
            yield from range(2)
        finally:
            closed = True

    reading = results()
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    with pytest.raises(StopValidationError):
        in_rounds(2, reading, rank, StoppingPause(), lambda: None)
    assert closed


def test_a_round_is_computed_between_its_begin_and_its_end(monkeypatch: pytest.MonkeyPatch):
    """Rank 1 of 2 has item 1 of three, and is idle in the second round."""
    order: list[str] = []
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [["a", "c"], mine])
    pause = Mock(begin=lambda: order.append("begin"), end=lambda: order.append("end"))

    def results() -> Generator[str, None, None]:
        order.append("compute")
        yield "b"
        order.append("never")

    rank = DistributedContext(rank=1, local_rank=1, world=2, device=torch.device("cpu"))
    assert in_rounds(3, results(), rank, pause, lambda: order.append("idle")) == ["a", "b", "c"]
    assert order == ["begin", "compute", "end", "begin", "idle", "end"]
