"""One attempt of a run as its trackers see it: python attempt.py CONFIG_JSON TOOL RESUMED_STEP LAST_STEP [kill].

It resumes at RESUMED_STEP, logs each step up to LAST_STEP, and then ends, or kills itself as the kernel would.
"""

import os
import signal
import sys
import time
from pathlib import Path

from motionmae.config import Config
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, JsonLines, Kind
from motionmae.training.trackers.base import open_tracker
from motionmae.training.trackers.mlflow_run import MLflow
from motionmae.training.trackers.trackio_run import Trackio
from motionmae.training.trackers.wandb_run import WeightsAndBiases
from tests.monitoring.runs import metrics_row

OPENERS = {"wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}


def main(config_json: str, tool: str, resumed_step: int, last_step: int, kill: bool) -> None:
    config = Config.model_validate_json(config_json)
    folder = RunFolder(Path(config.run_folder))
    folder.create()
    events = EventLog("attempt", [JsonLines(folder.events, folder.metrics)])
    tracker = open_tracker(tool, OPENERS[tool], config, folder, resumed_step)
    assert tracker
    events.add(tracker)
    for step in range(resumed_step + 1, last_step + 1):
        if step == last_step:
            time.sleep(1)  # between the last two rows, as between two rows of a training
        events.metrics(metrics_row(step))
        if step == 4 and (folder.path / "picture.png").exists():
            events.event(Kind.PICTURE, 3, path="picture.png")
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    events.event(Kind.FINISH, last_step)
    events.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "kill" in sys.argv)
