"""Check of the engine at every ZeRO stage, on a machine without a CUDA toolkit."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
from torch.utils import cpp_extension

from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, build_engine, load, take_steps

_SPREAD = 0.01  # largest relative difference between the losses of two stages; bf16 rounds differently


def check_zero_stages(setting: Setting) -> Figures:
    """Take three steps at each stage. The losses must agree, and DeepSpeed must not compile an extension."""
    config = load(TINY, setting)
    before = _extensions()
    losses = {}
    with patch.object(cpp_extension, "CUDA_HOME", None):
        for stage in (0, 1, 2, 3):
            engine = build_engine(config, stage)
            losses[f"zero{stage}"] = take_steps(engine, config, range(3))[-1]
            engine.close()
    figures: Figures = {"losses": losses}
    compiled = sorted(_extensions() - before)
    require(not compiled, f"DeepSpeed compiled {', '.join(compiled)}, which needs nvcc on every node", figures)
    spread = float(np.ptp(list(losses.values()))) / losses["zero0"]  # NaN if any loss is
    require(spread < _SPREAD, f"the losses of the ZeRO stages differ by {spread:.1%}", figures)
    return figures | {"spread": spread}


def _extensions() -> set[str]:
    """Return the names of the extensions that were compiled for torch."""
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return {path.name for path in Path(chosen).glob("*")}
    return {path.name for path in Path(cpp_extension.get_default_build_root()).glob("*/*")}
