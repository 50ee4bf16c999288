"""A rank that joins the process group and ends; tests start it with torchrun's or Slurm's variables.

usage: python -m tests.distributed.waiting_rank [DEVICE]
"""

import sys

from motionmae.commands.app import run
from motionmae.config import EngineConfig
from motionmae.distributed.process_group import distributed
from motionmae.distributed.stop_requests import Stopped, StopSignals


def main() -> int:
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    with StopSignals() as signals:
        try:
            with distributed(EngineConfig(device=device), signals) as rank:
                print(f"rank {rank.rank} of {rank.world}", flush=True)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return stopped.end.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
