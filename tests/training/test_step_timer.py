import time
from unittest.mock import Mock

import pytest
import torch

from motionmae.runs.events import Phase
from motionmae.training import step_timer
from motionmae.training.callbacks.metrics import straggler_scores
from motionmae.training.step_timer import CudaTimer, StartupTimer, StepTimer


class Ticks:
    """A timer whose clock advances by one at every mark and is read later, like CUDA events."""

    def __init__(self) -> None:
        self.now = 0
        self.read = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def seconds(self, first: int, last: int) -> float:
        self.read += 1
        return last - first


def test_every_moment_belongs_to_one_phase_and_events_are_read_at_take():
    ticks = Ticks()
    clock = StepTimer(ticks)
    for phase in (Phase.DATA_WAIT, Phase.FORWARD, Phase.DATA_WAIT, Phase.CHECKPOINT):
        clock.enter(phase)
    assert ticks.read == 0
    spent = clock.take()
    assert spent == dict.fromkeys(Phase, 0) | {
        Phase.OTHER: 1, Phase.DATA_WAIT: 2, Phase.FORWARD: 1, Phase.CHECKPOINT: 1
    }  # fmt: skip
    clock.enter(Phase.FORWARD)
    assert sum(clock.take().values()) == 2  # continues at the last read: no moment is lost or counted twice


def test_the_host_timer_measures_waits():
    clock = StepTimer.of(torch.device("cpu"))
    begin = time.perf_counter()
    clock.enter(Phase.DATA_WAIT)
    time.sleep(0.05)
    clock.enter(Phase.FORWARD)
    clock.end_step()
    spent = clock.take()
    assert spent[Phase.DATA_WAIT] >= 0.05
    assert sum(spent.values()) == pytest.approx(time.perf_counter() - begin, abs=0.01)


def test_the_time_between_steps_is_not_the_slowest_step():
    clock = StepTimer.of(torch.device("cpu"))
    clock.end_step()
    time.sleep(0.05)
    clock.begin_step()
    clock.end_step()
    assert clock.steps == 2
    assert clock.slowest_step < 0.05


def test_the_straggler_is_the_rank_whose_own_part_takes_longest():
    own = torch.tensor([1.0, 1.0, 3.0, 1.0])
    assert straggler_scores(own, 1) == {"straggler_score": 1.0, "slowest_rank": 2, "slowest_score": 3.0}
    assert straggler_scores(own, 2)["straggler_score"] == 3.0


class Clock:
    """The host's clock, which a test moves."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(step_timer, "time", found)
    return found


def test_the_slowest_step_since_the_last_row(clock: Clock):
    timer = StepTimer.of(torch.device("cpu"))
    for seconds in (2.0, 5.0, 3.0):
        clock.now += 10.0  # a save
        timer.begin_step()
        clock.now += seconds
        timer.end_step()
    assert (timer.steps, timer.slowest_step) == (3, 5.0)
    assert timer.take()[Phase.OTHER] == 40.0
    assert (timer.steps, timer.slowest_step) == (0, 0.0)


def test_stages_of_the_start_follow_each_other(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_timer, "process_age", lambda: 7.0)
    startup = StartupTimer()
    for stage, seconds in (("data", 2.0), ("engine", 0.5)):
        clock.now += seconds
        startup.done(stage)
    assert list(startup.seconds.items()) == [("imports", 7.0), ("data", 2.0), ("engine", 0.5)]


def test_events_of_a_gpu_are_read_in_seconds_after_it_has_reached_them(monkeypatch: pytest.MonkeyPatch):
    made: list[Mock] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: made.append(Mock(timing=enable_timing)) or made[-1])
    timer = CudaTimer()
    first, last = timer.mark(), timer.mark()
    assert [event.timing for event in made] == [True, True]
    for event in made:
        event.record.assert_called_once_with()
    first.elapsed_time.return_value = 1500.0  # milliseconds
    assert timer.seconds(first, last) == 1.5
    last.synchronize.assert_called_once_with()
    first.elapsed_time.assert_called_once_with(last)
    assert isinstance(StepTimer.of(torch.device("cuda"))._timer, CudaTimer)
