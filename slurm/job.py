"""The job that submitit runs on every rank, and runs again after a preemption, a time-out or a failure.

A rank exits with the code of an :class:`motionmae.runs.end_reason.EndReason`. What follows from it on Slurm is decided by
:mod:`slurm.requeue_policy`, except after SIGUSR2: then rank 0 requeues the job through submitit (statuses 255, and 144 on this
machine), which counts time-outs.

SIGTERM alone is also what a preemption sends where Slurm is not configured with preempt_send_user_signal, and a job
that ends in its grace period counts as failed (seen with Slurm 22.05). So rank 0 asks Slurm before it leaves, and
requeues a job that is being preempted as if SIGUSR2 had come.

The pickle that submitit keeps holds the configuration and nothing else. It names no step and no attempt, because
after a node failure Slurm runs an old one: the run finds its newest checkpoint by itself.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import Checkpointable

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason, classify_error
from slurm import scontrol
from slurm.local_executor import RESTARTS_VARIABLE, SIGNALS, stop_with_controller

if TYPE_CHECKING:
    from motionmae.distributed.stop_requests import Preemption

_PORTS = (20_000, 6_000)
"""First port and number of ports; below those that Linux gives to outgoing connections, and as many left above."""


def rendezvous(environment: submitit.JobEnvironment) -> dict[str, str]:
    """What torch.distributed needs to know, from what submitit knows.

    The port changes with every restart, as a rank of the former life may still hold the old one.
    """
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get(RESTARTS_VARIABLE) or 0)
    number = int(environment.job_id.replace("_", ""))
    return {
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
        "MASTER_ADDR": "127.0.0.1" if environment.cluster == "local" else environment.hostnames[0],
        "MASTER_PORT": str(_PORTS[0] + (number * 31 + restarts * 7) % _PORTS[1]),
    }


class TrainJob(Checkpointable):
    """A run as a submitit job, pre-training or fine-tuning; ``checkpoint`` is inherited and resubmits this very object.

    Args:
        config: the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self) -> str:
        """Run one attempt on this rank; returns the value of its end reason.

        Raises:
            SystemExit: with the status that says how, unless the run finished.
        """
        environment = submitit.JobEnvironment()
        os.environ.update(rendezvous(environment))
        if environment.cluster == "local":
            stop_with_controller()
        # torch and DeepSpeed: slow to import, and not needed where a job is submitted
        from monitoring.exporter_process import monitored
        from motionmae.distributed.stop_requests import Preemption
        from motionmae.training.tasks import train_task

        with Preemption() as preemption:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            try:
                if environment.cluster == "slurm":
                    self.preflight(environment)
                with monitored(self.config) as sinks:
                    reason = train_task(self.config, preemption=preemption, sinks=sinks)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                sys.exit(classify_error(error).exit_code)
            except Exception as error:
                traceback.print_exc()
                sys.exit(classify_error(error).exit_code)
            if reason is not EndReason.FINISHED and environment.global_rank != 0:
                sys.exit(0)  # quietly: rank 0 speaks for the job, and a status of ours could end it before it has
            if reason is EndReason.STOPPED:
                sys.exit(reason.exit_code)
            if reason is EndReason.TERMINATED and not is_being_preempted(environment):
                sys.exit(reason.exit_code)
            if reason is not EndReason.FINISHED:
                requeue(preemption)
        return reason.value

    def preflight(self, environment: submitit.JobEnvironment) -> None:
        """Leave, so that the job is queued again, if a node does not work."""
        from motionmae.distributed.context import choose_device
        from motionmae.runs.attempt import Attempt
        from slurm.attempt_log import Attempts
        from slurm.preflight import BadNode, Unreachable, abort, preflight

        run = Path(self.config.output_dir) / self.config.name
        ntasks_per_node = environment.num_tasks // environment.num_nodes
        nodes = [environment.hostnames[rank // ntasks_per_node] for rank in range(environment.num_tasks)]
        try:
            device = choose_device(self.config.engine.device, environment.local_rank)
            preflight(run, rendezvous(environment), nodes, device, self.config.launch.preflight_seconds)
        except BadNode as error:
            abort(EndReason.BAD_NODE, f"{nodes[environment.global_rank]} is no good: {error}")
        except Unreachable as error:
            attempt = Attempt(job=environment.job_id, restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0))
            for node in error.nodes:
                Attempts(run).failed(attempt, EndReason.BAD_NODE, 0, node)
            abort(EndReason.LOST_PEERS, str(error))


def is_being_preempted(environment: submitit.JobEnvironment) -> bool:
    """Whether Slurm has told this running job to make room for another one; False if it does not answer."""
    job = scontrol.show(environment.job_id) if environment.cluster == "slurm" else None
    return job is not None and job.state == "RUNNING" and job.preempted


def requeue(preemption: "Preemption") -> None:
    """Let submitit count time-outs, write the pickle anew, and have the job queued again. Does not return."""
    ask = preemption.former[signal.SIGUSR2]
    assert callable(ask), "submitit installs its handler before it calls a job"
    try:
        ask(signal.SIGUSR2, None)
    except UncompletedJobError as error:
        print(f"error: {error} (launch.max_timeouts): submit the run again", file=sys.stderr, flush=True)
        sys.exit(EndReason.USER_ERROR.exit_code)
