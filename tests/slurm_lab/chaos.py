"""Strike one training with random faults and compare it with the same training without faults.

Example::

    python -m tests.slurm_lab.chaos --seed 1 --faults 20 --json chaos.json

Needs root and the programs of the lab; takes about a minute per fault. Exit status 0 means that all losses and all
final weights are bitwise equal.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from motionmae.files import output_file
from tests.slurm_lab.faults import NAMES, Damage, strike
from tests.slurm_lab.lab import Lab, missing
from tests.slurm_lab.runs import CHECKPOINT_STEPS, SLOW_RATE, TrainingRun
from tests.training.shards import make_shards

STEPS_PER_FAULT = 24
"""A run continues for about 50 steps until Slurm notices a dead slurmd; other faults take few steps."""


def draw_faults(draw: random.Random, number: int) -> list[Callable[[TrainingRun, str], None]]:
    """Faults in random order, each kind equally often as far as ``number`` allows."""
    rounds = -(-number // len(NAMES))
    return [fault for _ in range(rounds) for fault in draw.sample(list(NAMES), len(NAMES))][:number]


def chaos(seed: int, faults: int, folder: Path) -> tuple[TrainingRun, list[Damage]]:
    """A finished run with ``faults`` faults, at random times and on random nodes of the run."""
    draw = random.Random(seed)
    with Lab(nodes=4, rate=SLOW_RATE) as lab:
        run = TrainingRun(lab, folder / "struck", folder / "shards", "--nodes", "2", steps=faults * STEPS_PER_FAULT)
        run.submit()
        damages = []
        for number, fault in enumerate(draw_faults(draw, faults)):
            run.wait_for_steps(draw.randint(CHECKPOINT_STEPS - 1, 2 * CHECKPOINT_STEPS + 2))
            damages.append(strike(run, fault, draw.choice(run.nodes())))
            print(f"{time.strftime('%H:%M:%S')} {number + 1}/{faults} {damages[-1]}", flush=True)
        run.finish()
    return run, damages


def reference(faults: int, folder: Path) -> TrainingRun:
    """The same run without faults."""
    with Lab(nodes=2) as lab:
        steps = faults * STEPS_PER_FAULT
        run = TrainingRun(lab, folder / "reference", folder / "shards", "--nodes", "2", steps=steps)
        run.submit()
        run.finish()
    return run


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of faults, times and nodes")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--json", type=output_file, help="file for the result")
    arguments = parser.parse_args()
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="motionmae-chaos-"))
    try:
        make_shards(folder / "shards", samples=12)
        with ThreadPoolExecutor() as pool:
            alone = pool.submit(reference, arguments.faults, folder)
            run, damages = chaos(arguments.seed, arguments.faults, folder)
            expected = alone.result()
        tensors, others = run.tensors(), expected.tensors()
        result = {
            "seed": arguments.seed,
            "faults": dict(Counter(damage.fault for damage in damages)),
            "steps": run.steps,
            "steps_lost": sum(damage.lost for damage in damages),
            "losses_equal": run.losses() == expected.losses(),
            "weights_equal": tensors.keys() == others.keys()
            and all(np.array_equal(tensors[key], others[key]) for key in others),
            "attempts": len({row["attempt"] for row in run.rows()}),
            "damages": [asdict(damage) for damage in damages],
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({key: value for key, value in result.items() if key != "damages"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    return 0 if result["losses_equal"] and result["weights_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
