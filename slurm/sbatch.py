"""Plain batch scripts for jobs that resume by themselves: sharding and testing."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from motionmae.errors import UserError


def batch_script(options: Mapping[str, str], lines: Sequence[str]) -> str:
    """Return a script with long sbatch options. Slurm requeues the job after a preemption or a node failure."""
    directives = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    return "\n".join(["#!/bin/sh", *directives, "#SBATCH --requeue", "#SBATCH --open-mode=append", *lines, ""])


def sbatch(script: str) -> str:
    """Submit a script and return its job ID. Raises UserError if sbatch is not installed or refuses the job."""
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("sbatch is not installed on this machine: submit from a login node of the cluster") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused the job: {error.stderr.strip()}") from error
    return done.stdout.strip().partition(";")[0]
