"""Check that ``engine.deterministic`` repeats a run bitwise. The parent sets CUBLAS_WORKSPACE_CONFIG."""

import torch

from motionmae.config import Config
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, build_engine, load, take_steps

_STEPS, _QUICK_STEPS = 10, 5


def check_determinism(setting: Setting) -> Figures:
    """Train twice; the weights must be equal to the last bit. Whether they are so by default is only noted."""
    cases = {"smallest_model": load(TINY, setting)}
    if setting.on_gpu and not setting.quick:
        cases["vit_b"] = load("vitb_k400", setting, "engine.micro_batch_size=4", "model.depth=2")
    figures, steps = Figures(), _QUICK_STEPS if setting.quick else _STEPS
    for name, config in cases.items():
        figures[name] = {"default": repeats(config.updated({"engine.deterministic": False}), steps)}
        try:
            figures[name]["deterministic"] = repeats(config.updated({"engine.deterministic": True}), steps)
        finally:
            torch.use_deterministic_algorithms(False)  # later checks use this process
    unequal = [name for name, found in figures.items() if not found["deterministic"]]
    require(not unequal, f"two runs with engine.deterministic=true differ: {', '.join(unequal)}", figures)
    return figures


def repeats(config: Config, steps: int) -> bool:
    """Return whether two runs of some steps end with equal weights."""
    ends = []
    for _ in range(2):
        engine = build_engine(config)
        take_steps(engine, config, range(steps))
        ends.append({name: p.detach().clone() for name, p in engine.parameters.items()})
        engine.close()
    return all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
