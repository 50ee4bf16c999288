"""Strike trainings with random faults and compare them with the same training without faults.

Example::

    python -m tests.slurm_lab.chaos --seed 1 --faults 20 --json chaos.json
    python -m tests.slurm_lab.chaos --seeds 0-19 --faults 20 --folder chaos

With --seeds, one training after the other; each leaves a JSON file in the folder, and the same command continues. Needs
root and the programs of the lab; takes less than a minute per fault. Exit status 0 means that all losses and all final
weights are bitwise equal.

A run trains on two nodes of four with one spare, and goes on with one node. This changes no bit, because a step has two
micro-batches, whose gradients are added in either order. Clipping is off: the norm of the gradients is a sum over the
ranks' parts, whose last bit depends on the number of ranks. A rank that trains alone is slowed down to the pace of two,
so that the run does not end while Slurm notices a fault. With an odd seed the site preempts with PreemptMode=CANCEL
and without a grace time, and the next job of the chain continues the run.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from motionmae.files import output_file, write_json
from slurm.submission import parse_seeds
from tests.slurm_lab.faults import NAMES, Damage, lose_all_but_one, requeue_and_wait, strike, unplug
from tests.slurm_lab.lab import GRACE_SECONDS, Lab, missing
from tests.slurm_lab.runs import CHECKPOINT_STEPS, TrainingRun
from tests.training.shards import make_shards

STEPS_PER_FAULT = 40
RATE = "160mbit"
"""A run continues for about 50 steps until Slurm notices a dead slurmd, and for more where its batch script alone is
lost; other faults take few steps."""
BATCH = 6
"""Two micro-batches."""
SETTINGS = (
    "--nodes=2",
    "--spares=1",
    "--min-nodes=1",
    "--chain=1",
    "checkpoint.memory_every_steps=2",
    "watchdog.step_seconds=20",
    "watchdog.save_seconds=60",
    "optim.warmup_epochs=1",
    "optim.clip_grad=0",
)
SLOW_STEPS = Path(__file__).with_name("slow_steps")
SECONDS_PER_FAULT = 300
"""A run that takes longer is stuck."""


def draw_faults(draw: random.Random, number: int) -> list[Callable[[TrainingRun, str], None]]:
    """Faults in random order, each kind equally often as far as ``number`` allows."""
    rounds = -(-number // len(NAMES))
    return [fault for _ in range(rounds) for fault in draw.sample(list(NAMES), len(NAMES))][:number]


def struck_run(lab: Lab, folder: Path, faults: int) -> TrainingRun:
    """A run long enough for ``faults`` faults."""
    steps = faults * STEPS_PER_FAULT
    return TrainingRun(lab, folder, folder.parent / "shards", *SETTINGS, steps=steps, batch=BATCH)


def chaos(seed: int, faults: int, folder: Path) -> tuple[TrainingRun, list[Damage]]:
    """A finished run with ``faults`` faults, at random times and on random nodes of the run."""
    draw = random.Random(seed)
    mode, grace = ("CANCEL", 0) if seed % 2 else ("REQUEUE", GRACE_SECONDS)
    with Lab(nodes=4, rate=RATE, preempt_mode=mode, grace_seconds=grace) as lab:
        run = struck_run(lab, folder / "struck", faults)
        run.variables["PYTHONPATH"] = str(SLOW_STEPS)
        run.submit()
        damages = []
        for number, fault in enumerate(draw_faults(draw, faults)):
            print(f"{time.strftime('%H:%M:%S')} {number + 1}/{faults} {NAMES[fault]}", flush=True)
            run.wait_for_steps(draw.randint(CHECKPOINT_STEPS - 1, 2 * CHECKPOINT_STEPS + 2))
            while fault in (lose_all_but_one, unplug) and len(run.nodes()) < 2:
                requeue_and_wait(run)  # earlier faults have left one node, whose ranks have no peers to lose
            damages.append(strike(run, fault, draw.choice(run.nodes())))
            print(f"{time.strftime('%H:%M:%S')} {number + 1}/{faults} {damages[-1]}", flush=True)
        run.finish()
    return run, damages


def reference(faults: int, folder: Path, cache: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The losses, weights and moments of the same run without faults; kept in the file ``cache``."""
    if not cache.exists():
        with Lab(nodes=3) as lab:
            run = struck_run(lab, folder / "reference", faults)
            run.submit()
            run.finish()
        np.savez(cache, **outcome(run))  # type: ignore[arg-type]  # its keywords are arrays
    with np.load(cache) as arrays:
        return dict(arrays)


def outcome(run: TrainingRun) -> dict[str, np.ndarray[Any, Any]]:
    """The losses, weights and moments of a finished run."""
    return {"losses": np.array(run.losses()), **run.tensors()}


def run_seed(seed: int, faults: int, cache: Path) -> dict[str, Any]:
    """Strike one training, and compare it with the training without faults."""
    folder = Path(tempfile.mkdtemp(prefix="motionmae-chaos-"))
    began = time.monotonic()
    try:
        make_shards(folder / "shards", samples=12)
        expected = reference(faults, folder, cache)
        began = time.monotonic()
        run, damages = chaos(seed, faults, folder)
        found = outcome(run)
        equal = {key: key in found and np.array_equal(found[key], value) for key, value in expected.items()}
        return {
            "seed": seed,
            "faults": dict(Counter(damage.fault for damage in damages)),
            "steps": run.steps,
            "steps_lost": sum(damage.lost for damage in damages),
            "losses_equal": equal.pop("losses"),
            "weights_equal": len(equal) == len(found) - 1 and all(equal.values()),
            "attempts": len({row["attempt"] for row in run.rows()}),
            "seconds": round(time.monotonic() - began),
            "damages": [asdict(damage) for damage in damages],
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_seeds(seeds: list[int], faults: int, folder: Path) -> int:
    """Run the seeds whose JSON is missing in ``folder``, each in a process of its own; return the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        file, log = folder / f"seed-{seed}-{faults}.json", folder / f"seed-{seed}-{faults}.log"
        if file.exists():
            continue
        command = [sys.executable, "-m", "tests.slurm_lab.chaos", "--seed", str(seed), "--faults", str(faults)]
        command += ["--json", str(file), "--folder", str(folder)]
        print(f"{time.strftime('%H:%M:%S')} seed {seed}: {log}", flush=True)
        with log.open("w") as output:
            try:
                limit = (faults + 2) * SECONDS_PER_FAULT
                subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=limit, check=False)
            except subprocess.TimeoutExpired:
                print(f"seed {seed}: not finished after {limit} s", flush=True)
    results = {seed: read(folder / f"seed-{seed}-{faults}.json") for seed in seeds}
    print(table(results))
    return 0 if all(result and is_equal(result) for result in results.values()) else 1


def read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def is_equal(result: dict[str, Any]) -> bool:
    return bool(result["losses_equal"] and result["weights_equal"])


def table(results: dict[int, dict[str, Any] | None]) -> str:
    """The results of seeds in Markdown. A seed without a result has failed; its log says why."""
    lines = ["| seed | faults | attempts | steps twice | seconds | bitwise |", "|---|---|---|---|---|---|"]
    for seed, result in results.items():
        if result is None:
            lines.append(f"| {seed} | | | | | failed |")
            continue
        bitwise = "yes" if is_equal(result) else "no"
        columns = (seed, sum(result["faults"].values()), result["attempts"], result["steps_lost"], result["seconds"])
        lines.append(f"| {' | '.join(map(str, columns))} | {bitwise} |")
    return "\n".join(lines)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of faults, times and nodes")
    parser.add_argument("--seeds", metavar="0-19", help="several seeds, one after the other")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--json", type=output_file, help="file for the result of one seed")
    parser.add_argument("--folder", type=Path, help="folder for the results of several seeds")
    arguments = parser.parse_args()
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    if arguments.seeds:
        return run_seeds(parse_seeds(arguments.seeds), arguments.faults, arguments.folder or Path("chaos"))
    with tempfile.TemporaryDirectory() as scratch:
        cache = (arguments.folder or Path(scratch)) / f"reference-{arguments.faults}.npz"
        result = run_seed(arguments.seed, arguments.faults, cache)
    print(json.dumps({key: value for key, value in result.items() if key != "damages"}, indent=1))
    if arguments.json:
        write_json(arguments.json, result)
    return 0 if is_equal(result) else 1


if __name__ == "__main__":
    sys.exit(main())
