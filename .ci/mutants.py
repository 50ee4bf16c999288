"""Mutation testing: put small faults into modules, one at a time, and see which of them their tests notice.

Cosmic Ray (https://cosmic-ray.readthedocs.io) makes the faults: another comparison, another number, `and` for `or`, an
exception that is not caught. The lines are drawn with a fixed seed, all modules in turn, and one fault of each line.
The faults go into a copy of the committed files. The result is the faults that no test noticed, as diffs, and a table.

Usage: make mutants   or   python .ci/mutants.py --minutes 5 slurm/batch/chain.py
"""

import argparse
import itertools
import os
import random
import shlex
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkerOutcome, WorkItem

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "motionmae/files.py": "tests/test_files.py",
    "motionmae/json_text.py": "tests/test_json_text.py",
    "motionmae/text.py": "tests/test_text.py",
    "motionmae/outputs.py": "tests/test_outputs.py",
    "motionmae/config/resume.py": "tests/config/test_resume.py",
    "motionmae/config/text_types.py": "tests/config/test_text_types.py",
    "motionmae/data/rng.py": "tests/data/test_rng.py",
    "motionmae/data/clip_sampling.py": "tests/data/test_clip_sampling.py",
    "motionmae/data/sampler.py": "tests/data/test_sampler.py",
    "motionmae/data/rand_augment.py": "tests/data/test_rand_augment.py",
    "motionmae/models/masking.py": "tests/models/test_masking.py",
    "motionmae/models/targets.py": "tests/models/test_targets.py",
    "motionmae/models/cubes.py": "tests/models/test_cubes.py",
    "motionmae/training/nonfinite.py": "tests/training/test_nonfinite.py",
    "motionmae/training/save_interval.py": "tests/training/test_save_interval.py",
    "motionmae/training/step_timer.py": "tests/training/test_step_timer.py",
    "motionmae/evaluation/davis/metrics.py": "tests/evaluation/davis/test_metrics.py",
    "motionmae/planning/goodput.py": "tests/planning/test_goodput.py",
    "motionmae/planning/flops.py": "tests/planning/test_flops.py",
    "motionmae/planning/memory.py": "tests/planning/test_memory.py",
    "motionmae/runs/end_reason.py": "tests/runs/test_end_reason.py",
    "motionmae/runs/events.py": "tests/runs/test_events.py",
    "motionmae/runs/checkpoint_manifest.py": "tests/runs/test_checkpoint_manifest.py",
    "motionmae/runs/summary.py": "tests/runs/test_summary.py",
    "slurm/attempt_log.py": "tests/slurm/test_attempt_log.py tests/slurm/batch/test_requeue_policy.py",
    "slurm/batch/requeue_policy.py": "tests/slurm/batch/test_requeue_policy.py",
    "slurm/batch/chain.py": "tests/slurm/batch/test_chain.py",
    "slurm/batch/roll_call.py": "tests/slurm/batch/test_roll_call.py",
    "slurm/batch/step_failure.py": "tests/slurm/batch/test_step_failure.py",
    "monitoring/goodput.py": "tests/monitoring/test_goodput.py",
    "monitoring/rank_metrics.py": "tests/monitoring/test_rank_metrics.py tests/monitoring/test_goodput.py",
    "data_tools/annotations/split.py": "tests/data_tools/annotations",
    "data_tools/segments.py": "tests/data_tools/test_segments.py",
    "data_tools/decode.py": "tests/data_tools/test_decode.py",
}
"""Modules and the tests that must notice a fault in them: those that run in seconds, without Slurm."""

_NOT_A_FAULT = ("ReplaceBinaryOperator_BitOr", "RemoveDecorator")
"""Operators whose faults end the import, so that any test notices them: `int | None` in an annotation, `@dataclass`."""


@dataclass
class Result:
    """A fault: its module, its place, whether a test noticed it, and the change as a diff."""

    module: str
    line: int
    killed: bool
    diff: str


def draw(module: str, count: int, seed: int, folder: Path) -> list[WorkItem]:
    """Return ``count`` faults of ``module``, or one a line if it has fewer lines that can hold one."""
    by_line = defaultdict(list)
    with use_db(str(folder / "session.sqlite"), WorkDB.Mode.create) as session:
        init([Path(module)], session, operator_cfgs={})
        for item in session.work_items:
            fault = item.mutations[0]
            if not any(word in fault.operator_name for word in _NOT_A_FAULT):
                by_line[fault.start_pos[0]].append(item)
    (folder / "session.sqlite").unlink()
    chance = random.Random(f"{seed} {module}")
    drawn = []
    for line in chance.sample(sorted(by_line), len(by_line)):
        items = sorted(by_line[line], key=_identity)
        chance.shuffle(items)
        drawn += [item for item in items if _is_possible(item.mutations[0])][:1]
        if len(drawn) == count:
            break
    return drawn


def _is_possible(fault: MutationSpec) -> bool:
    """Return whether the fault gives valid Python: for example, `**` can be an operator or unpack a mapping."""
    try:
        code = mutate_code(fault.module_path.read_text(), get_operator(fault.operator_name)(), fault.occurrence)
        compile(code or "?", str(fault.module_path), "exec")
    except (SyntaxError, AttributeError):  # the second from Cosmic Ray, for an exception with a dot in its name
        return False
    return True


def _identity(item: WorkItem) -> tuple:
    fault = item.mutations[0]
    return fault.start_pos, fault.operator_name, fault.occurrence


def test_command(module: str) -> str:
    """Return the command that runs the tests of a module, in the order of the files."""
    options = ["-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", "not long and not chaos"]
    return shlex.join([sys.executable, "-m", "pytest", *options, *MODULES[module].split()])


def seconds_without_a_fault(module: str) -> float:
    """Return how long the tests of a module take, which must pass."""
    began = time.monotonic()
    done = subprocess.run(shlex.split(test_command(module)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the tests of {module} fail without a fault:\n{done.stdout[-3000:]}")
    return time.monotonic() - began


def run(modules: list[str], faults: int, seed: int, minutes: float) -> list[Result]:
    """Try the faults of all modules in turn until none is left or the time is over."""
    end = time.monotonic() + 60 * minutes
    drawn = {}
    warnings.simplefilter("ignore", SyntaxWarning)  # a fault such as `is` with a literal is welcome
    with TemporaryDirectory() as folder:
        for module in modules:
            drawn[module] = draw(module, faults, seed, Path(folder))
    limits: dict[str, float] = {}
    results = []
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*drawn.values()))
    for number, item in enumerate(filter(None, rounds), 1):
        if time.monotonic() > end:
            break
        fault = item.mutations[0]
        module = str(fault.module_path)
        if module not in limits:
            limits[module] = 30 + 5 * seconds_without_a_fault(module)
        outcome = mutate_and_test(item.mutations, test_command(module), limits[module])
        if outcome.worker_outcome != WorkerOutcome.NORMAL:
            raise SystemExit(f"no fault could be put into {module}: {outcome.output}")
        results.append(Result(module, fault.start_pos[0], outcome.is_killed, outcome.diff or ""))
        word = "noticed" if outcome.is_killed else "SURVIVED"
        print(f"{number:4d} {word:8} {module}:{fault.start_pos[0]} {fault.operator_name}", flush=True)
    return results


def report(results: list[Result]) -> str:
    """Return the survivors as diffs, and a Markdown table of the modules."""
    lines = [result.diff.removeprefix("--- mutation diff ---\n") for result in results if not result.killed]
    lines += ["", "| module | faults | noticed |", "|---|---|---|"]
    for module in dict.fromkeys(result.module for result in results):
        of_module = [result.killed for result in results if result.module == module]
        lines.append(f"| `{module}` | {len(of_module)} | {sum(of_module)} |")
    noticed = sum(result.killed for result in results)
    lines.append(f"| all | {len(results)} | {noticed} ({100 * noticed / max(1, len(results)):.0f} %) |")
    return "\n".join(lines)


def main() -> int:
    """Copy the committed files, put the faults there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all of the list in this file")
    parser.add_argument("--minutes", type=float, default=30, help="no new fault after this time (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=8, help="for each module (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other faults (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - set(MODULES):
        parser.error(f"{', '.join(sorted(unknown))}: not in the list of modules of {Path(__file__).name}")
    with TemporaryDirectory(prefix="mutants-") as folder:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = folder  # before the checkout, which is installed as editable
        where = subprocess.run([sys.executable, "-c", "import motionmae as m; print(m.__file__)"], capture_output=True)
        if not where.stdout.decode().startswith(folder):
            raise SystemExit(f"the tests would import motionmae from {where.stdout.decode()}")
        print(report(run(arguments.modules or list(MODULES), arguments.faults, arguments.seed, arguments.minutes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
