"""Process that runs checks and appends the result of each to a file, as a line of JSON.

The parent (:mod:`motionmae.gpu_checks.runner`) starts the process: a failed assertion of a CUDA kernel makes the whole
process useless, and a hanging one can only be killed.
"""

import contextlib
import gc
import importlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from motionmae.gpu_checks.check import CheckError, CheckResult, NotRunError, Setting, Verdict
from motionmae.json_text import JsonModel, load_json
from motionmae.text import get_logger

logger = get_logger(__name__)

NOT_RUN = "not_run"
"""Key of the figures that lists the parts of a check that could not run."""


class Job(JsonModel):
    """Work of one process."""

    checks: dict[str, str]  # names, and functions as "module:function"
    setting: Setting
    results: Path  # file of the results


def run_check(name: str, path: str, setting: Setting) -> CheckResult:
    """Run a check and catch every error."""
    start = time.monotonic()
    verdict, problem = Verdict.PASSED, ""
    figures: dict[str, Any] = {}
    try:
        module, _, function = path.partition(":")
        figures = getattr(importlib.import_module(module), function)(setting)
    except NotRunError as reason:
        verdict, problem = Verdict.NOT_RUN, str(reason)
    except CheckError as failure:
        verdict, problem, figures = Verdict.FAILED, str(failure), failure.figures
    except Exception as error:
        logger.exception("%s ended with an error", name)  # into the log of this process
        verdict, problem = Verdict.FAILED, f"{type(error).__name__}: {error}"
    not_run = tuple(figures.pop(NOT_RUN, ()))
    return CheckResult(
        name=name,
        verdict=verdict,
        seconds=round(time.monotonic() - start, 1),
        figures=json_values(figures),
        not_run=not_run,
        problem=problem[:2000],
    )


def json_values(value: Any) -> Any:
    """Return figures as JSON values: floats of four digits, other types as texts."""
    if isinstance(value, dict):
        return {str(key): json_values(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _free_memory() -> None:
    """Return the memory of the check's tensors to the GPU, for the processes that later checks start."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def main(job_file: Path) -> int:
    """Run the checks of a job one after the other, up to the first that fails."""
    job = load_json(job_file, Job)
    with job.results.open("a") as file:
        for name, path in job.checks.items():
            result = run_check(name, path, job.setting)
            if os.environ.get("RANK", "0") == "0":  # of several ranks, the first reports
                file.write(result.model_dump_json() + "\n")
                file.flush()
            if result.verdict is Verdict.FAILED:
                return 1  # a later check would begin with a damaged CUDA context
            _free_memory()
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # not through torch's teardown, which waits for other ranks
