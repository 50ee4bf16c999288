"""Ranks that give no sign of life."""

from typing import Any
from unittest.mock import Mock

import pytest

from motionmae.runs.end_reason import EndReason
from slurm.batch import supervisor as module
from slurm.batch.protocol import Hello, Process
from slurm.batch.roll_call import Member
from slurm.batch.step import Command
from slurm.batch.step_failure import Failure
from slurm.batch.supervisor import Settings, Supervisor


def _member(**values: Any) -> Member:
    process = Process(pid=1, began=1)
    hello = Hello(node="node1", launch=1, step=0, local_rank=0, process=process, nonce="0" * 64, proof="0" * 64)
    return Member(hello, Mock(), **values)


def _supervisor(hang_seconds: float = 30) -> Supervisor:
    settings = Settings((2,), False, True, heartbeat_seconds=1, join_seconds=60, hang_seconds=hang_seconds)
    return Supervisor(Mock(), settings, Command(["srun"], ["true"]), ["node1"])


@pytest.mark.parametrize(
    ("changes", "seconds", "hangs"),
    [
        ({}, 30.5, True),
        ({}, 29.5, False),
        ({"trains": False}, 100, False),  # a start has its own limits
        ({"ended_at": 1000.0}, 100, False),
    ],
)
def test_a_rank_without_a_sign_of_life_hangs(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], seconds: float, hangs: bool
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    silent, other = _member(heard_at=1000.0, **({"trains": True} | changes)), _member(trains=True)
    supervisor = _supervisor()
    while now[0] < 1000 + seconds:
        assert supervisor.silence([silent, other]) is None
        now[0] += 0.5
        other.heard_at = now[0]
    expected = Failure(EndReason.HUNG, status=79) if hangs else None
    assert supervisor.silence([silent, other]) == expected
    assert _supervisor(hang_seconds=0).silence([silent, other]) is None


def test_a_supervisor_that_was_stopped_itself_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    member = _member(heard_at=1000.0, trains=True)
    supervisor = _supervisor()
    now[0] += 5000  # the whole job, by `scontrol suspend`
    assert supervisor.silence([member]) is None
    now[0] += 9.9
    assert supervisor.silence([member]) is None
    now[0] += 9.9
    assert supervisor.silence([member]) is None
    now[0] += 9.9
    assert supervisor.silence([member]) is None
    now[0] += 0.5
    assert supervisor.silence([member]) == Failure(EndReason.HUNG, status=79)
