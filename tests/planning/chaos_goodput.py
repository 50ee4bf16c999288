"""Compare the goodput of finished runs with the predicted goodput: `python -m tests.planning.chaos_goodput RUN ...`.

The times and the rates of faults are measured in the run itself, as `motionmae plan --goodput --history RUN` does. Exit
status 1 means that a prediction is more than three points off.
"""

import sys
from pathlib import Path

from monitoring.goodput import goodput_of
from motionmae.planning.goodput import Conditions, PredictedGoodput, predict_goodput
from motionmae.planning.run_times import RunTimes, measure_times
from motionmae.runs.history import RunHistory

TOLERANCE = 0.03


def compare(run: Path, every_steps: int, memory_every_steps: int = 0) -> tuple[float, PredictedGoodput]:
    """Return the productive share of a run, and the prediction for its duration and its own rates of faults."""
    history = RunHistory(run)
    goodput = goodput_of(history)
    times = measure_times(history, RunTimes(step=1.0))
    conditions = Conditions(
        seconds=goodput.elapsed,
        mtbf=times.seconds_in_training / max(times.failures, 1),
        every_steps=every_steps,
        memory_every_steps=memory_every_steps,
        interruptions_a_day=times.interruptions / times.seconds_in_training * 86_400,
    )
    return goodput.ratio, predict_goodput(times, conditions)


def main() -> int:
    """Entry point; returns the exit status."""
    worst = 0.0
    for argument in sys.argv[1:]:
        config = RunHistory(Path(argument)).config
        assert config is not None
        assert config.checkpoint.every_steps != "auto"
        checkpoint = config.checkpoint
        measured, predicted = compare(Path(argument), config.checkpoint.every_steps, checkpoint.memory_steps)
        print(f"{argument}: {measured:.1%} productive, predicted {predicted.productive:.1%}")
        worst = max(worst, abs(measured - predicted.productive))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
