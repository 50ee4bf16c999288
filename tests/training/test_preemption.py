"""Real signals to real ranks."""

import signal
from pathlib import Path

import pytest

from tests.training.engine_workers import await_signal
from tests.training.launch import Ranks, wait_until


@pytest.mark.parametrize(
    ("signals", "outcome"),
    [
        ({1: [signal.SIGUSR2]}, "REQUEUE"),
        ({0: [signal.SIGTERM]}, "TERMINATED"),
        ({0: [signal.SIGTERM], 1: [signal.SIGUSR2]}, "REQUEUE"),
        ({0: [signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM]}, "REQUEUE"),
    ],
)
def test_a_signal_to_any_rank_reaches_all(tmp_path: Path, signals: dict[int, list[signal.Signals]], outcome: str):
    ranks = Ranks(2, await_signal, tmp_path)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be ready")
    for rank in (0, 1):
        ranks.send(rank, signal.SIGSTOP)  # so that all signals of a case are there when the flag is next asked for
    for rank, numbers in signals.items():
        for number in numbers:
            ranks.send(rank, number)
    for rank in (0, 1):
        ranks.send(rank, signal.SIGCONT)
    assert ranks.results() == [(outcome, 0), (outcome, 1)]
