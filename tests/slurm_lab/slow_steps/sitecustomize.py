"""Slow down the steps of a rank that trains alone; Python imports this module if PYTHONPATH has its folder.

The network paces the steps of several ranks in the lab (:data:`tests.slurm_lab.runs.SLOW_RATE`). A rank without peers
would take hundreds of steps while Slurm notices a fault.
"""

import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SECONDS = 0.4


class _Slow(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "motionmae.training.trainer" or (spec := PathFinder.find_spec(name, path)) is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_slow(module: Any) -> None:
            execute(module)
            take_step = module.Trainer.train_step

            def take_slow_step(self: Any, *arguments: Any) -> Any:
                if self.rank.world == 1:
                    time.sleep(SECONDS)
                return take_step(self, *arguments)

            module.Trainer.train_step = take_slow_step

        loader.exec_module = execute_and_slow
        return spec


sys.meta_path.insert(0, _Slow())
