"""The job that submitit runs on every rank, and runs again after a preemption or a time-out.

How a rank ends, and what follows from it:

========  ===================================  =========================================================
status    when                                 what follows
========  ===================================  =========================================================
0         the run finished                     nothing
2         a person's mistake (UserError)       nothing: it would happen again
143       SIGTERM: state was saved             nothing by us; after ``scontrol requeue`` Slurm runs the job again
255, 144  SIGUSR2: state was saved, and rank   Slurm (255) or the local controller (144) runs the job again
          0 requeued the job through submitit
other     a bug, a lost peer, a killed rank    the other ranks are ended; the same command resumes
========  ===================================  =========================================================

SIGTERM alone is also what a preemption sends where Slurm is not configured with preempt_send_user_signal, and a job
that ends in its grace period counts as failed (seen with Slurm 22.05). So rank 0 asks Slurm before it leaves, and
requeues a job that is being preempted as if SIGUSR2 had come.

The pickle that submitit keeps holds the configuration and nothing else. It names no step and no attempt, because
after a node failure Slurm runs an old one: the run finds its newest checkpoint by itself.
"""

import os
import signal
import sys

import submitit
from submitit.helpers import Checkpointable

from motionmae.config import Config
from motionmae.errors import UserError
from slurm.local import RESTARTS_VARIABLE, SIGNALS, stop_with_controller
from slurm.record import is_being_preempted

EXIT_USER_ERROR = 2
"""As the command lines exit."""


def rendezvous(environment: submitit.JobEnvironment) -> dict[str, str]:
    """What torch.distributed needs to know, from what submitit knows.

    The port changes with every restart, as a rank of the former life may still hold the old one; it lies below the
    ports that Linux gives to outgoing connections.
    """
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get(RESTARTS_VARIABLE) or 0)
    number = int(environment.job_id.replace("_", ""))
    return {
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
        "MASTER_ADDR": "127.0.0.1" if environment.cluster == "local" else environment.hostnames[0],
        "MASTER_PORT": str(20_000 + (number * 31 + restarts * 7) % 12_000),
    }


class TrainJob(Checkpointable):
    """Pre-training as a submitit job; ``checkpoint`` is inherited and resubmits this very object.

    Args:
        config: the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self) -> str:
        """Run one incarnation on this rank; returns the name of its outcome.

        Raises:
            SystemExit: with the status of the table above, unless the run finished.
        """
        environment = submitit.JobEnvironment()
        os.environ.update(rendezvous(environment))
        if environment.cluster == "local":
            stop_with_controller()
        # torch and DeepSpeed: slow to import, and not needed where a job is submitted
        from monitoring.session import monitored
        from motionmae.training.preemption import Preemption
        from motionmae.training.pretrain import Outcome, pretrain

        with Preemption() as preemption:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            try:
                with monitored(self.config) as sinks:
                    outcome = pretrain(self.config, preemption=preemption, sinks=sinks)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                sys.exit(EXIT_USER_ERROR)
            if outcome is not Outcome.FINISHED and environment.global_rank != 0:
                sys.exit(0)  # quietly: rank 0 speaks for the job, and a status of ours could end it before it has
            if outcome is Outcome.TERMINATED and not (
                environment.cluster == "slurm" and is_being_preempted(environment.job_id)
            ):
                sys.exit(outcome.value)
            if outcome is not Outcome.FINISHED:
                requeue = preemption.former[signal.SIGUSR2]
                assert callable(requeue), "submitit installs its handler before it calls a job"
                requeue(signal.SIGUSR2, None)  # counts time-outs, writes the pickle anew, requeues, exits
        return outcome.name
