"""Plain batch scripts, for jobs that are no training runs: sharding and testing, which know themselves how to go on."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from motionmae.errors import UserError


def batch_script(options: Mapping[str, str], lines: Sequence[str]) -> str:
    """A script with long sbatch options that is queued again after a preemption or a lost node."""
    asked = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    return "\n".join(["#!/bin/sh", *asked, "#SBATCH --requeue", "#SBATCH --open-mode=append", *lines, ""])


def sbatch(script: str) -> str:
    """Hand a script to sbatch; returns the job's number.

    Raises:
        UserError: if there is no Slurm here, or it refuses.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("there is no sbatch here: submit from a node of the cluster") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused: {error.stderr.strip()}") from error
    return done.stdout.strip().partition(";")[0]
