"""The job that submitit runs on every rank, once per attempt.

A rank exits with the code of its :class:`~motionmae.runs.end_reason.EndReason`, and :mod:`slurm.batch.requeue_policy`
decides whether the job is retried. SIGUSR2 is the exception: rank 0 then requeues the job through submitit (status 255,
or 144 on a local machine), which counts time limits.

A preemption sends only SIGTERM on sites without preempt_send_user_signal, and Slurm counts a job as failed that ends in
its grace period (seen with Slurm 22.05). Rank 0 therefore asks Slurm before it exits, and requeues a preempted job in
the same way as after SIGUSR2.

submitit's pickle holds only the configuration, no step and no attempt. After a node failure Slurm starts the old pickle
again, and the run finds its newest checkpoint by itself.
"""

import os
import signal
import subprocess
import sys
import traceback

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import Checkpointable

from motionmae.config import Config
from motionmae.distributed.rendezvous import (
    master_address,
    master_port,
    nodes_of_ranks,
    refuse_heterogeneous,
    training_port,
)
from motionmae.errors import UserError
from motionmae.runs import events
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, classify_error
from motionmae.text import LINES, join_lines, say
from slurm import scontrol
from slurm.batch.chain import Chain
from slurm.batch.member import Membership, join, take_place
from slurm.local_executor import RESTARTS_VARIABLE, SIGNALS, stop_with_controller


def rendezvous(environment: submitit.JobEnvironment) -> dict[str, str]:
    """Return torch.distributed's environment variables for a rank that submitit started."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get(RESTARTS_VARIABLE) or 0)
    step = int(os.environ.get("SLURM_STEP_ID") or 0)
    nodes = node_of_each_rank(environment)
    port = master_port(os.environ, training_port(int(environment.job_id.replace("_", "")), restarts, step))
    local = environment.cluster == "local"
    return {
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_WORLD_SIZE": str(nodes.count(environment.node)),
        "GROUP_RANK": str(environment.node),
        "MASTER_ADDR": "127.0.0.1" if local else master_address(os.environ, environment.hostnames[0]),
        "MASTER_PORT": str(port),
    }


def node_of_each_rank(environment: submitit.JobEnvironment) -> list[int]:
    """Return the index of the node of each rank; srun distributes the ranks in blocks (:mod:`slurm.executors`)."""
    local = str(environment.num_tasks // environment.num_nodes)
    return nodes_of_ranks({"LOCAL_WORLD_SIZE": local, **os.environ}, environment.num_tasks)


class TrainJob(Checkpointable):
    """A pre-training or fine-tuning run as a submitit job. The inherited ``checkpoint`` resubmits this object.

    A job that requests GPUs never trains on the CPU, as ``engine.device=auto`` would where torch cannot use the driver.
    """

    def __init__(self, config: Config) -> None:
        on_gpus = config.launch.gpus_per_node and config.engine.device == "auto"
        self.config = config.updated({"engine.device": "cuda"}) if on_gpus else config

    def __call__(self) -> str:
        """Run one attempt on this rank. Return the end reason if the run finished, else exit with the reason's code."""
        membership = join()
        try:
            reason = self.run(membership)
        except SystemExit as exit_:
            if membership:
                membership.leave(int(exit_.code or 0))
            raise
        if membership:
            membership.leave(0)
        return reason

    def run(self, membership: Membership | None) -> str:
        """Take a place in the attempt and train. A process of a standby step waits for its place here."""
        environment = submitit.JobEnvironment()
        if membership:
            take_place(membership.wait(lambda: prepare(self.config)))
            if membership.standby:
                become_rank(environment)
        os.environ.update(rendezvous(environment))
        if environment.cluster == "local":
            stop_with_controller()
        # torch and DeepSpeed import slowly, and a login node does not need them
        from monitoring.exporter_process import monitoring_sinks
        from motionmae.distributed.stop_requests import Stopped, StopSignals
        from motionmae.training.setup import run_training

        with StopSignals() as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            try:
                if environment.cluster == "slurm":
                    refuse_heterogeneous(os.environ)
                    with signals.immediate():
                        self.preflight(environment)
                with monitoring_sinks(self.config) as sinks:
                    sinks = [*sinks, membership] if membership else sinks
                    reason = run_training(self.config, signals=signals, sinks=sinks)
            except Stopped as stopped:
                say(str(stopped), file=sys.stderr)
                reason = stopped.end
            except Exception as error:
                if isinstance(error, UserError):
                    say(f"error: {error}", file=sys.stderr)
                else:
                    say(traceback.format_exc(), sys.stderr, keep=LINES, end="")
                sys.exit(classify_error(error).exit_code)
            if reason is not EndReason.FINISHED:
                if environment.global_rank != 0:
                    sys.exit(0)  # rank 0 decides for the job; a failing status here could end the job before that
                if reason is EndReason.STOPPED or (reason is EndReason.TERMINATED and not is_preempted(environment)):
                    sys.exit(reason.exit_code)
                if environment.cluster == "slurm" and self.chain(environment).goes_on_without():
                    sys.exit(EndReason.PREEMPTED.exit_code)
                requeue(signals.former[signal.SIGUSR2])
        return reason.value

    def chain(self, environment: submitit.JobEnvironment) -> Chain:
        return Chain(RunFolder(self.config.run_folder), environment.job_id)

    def preflight(self, environment: submitit.JobEnvironment) -> None:
        """Check device, storage and network; exit with BAD_NODE or LOST_PEERS if a check fails."""
        from motionmae.distributed.devices import choose_device
        from motionmae.runs.history import Attempt
        from slurm.attempt_log import AttemptLog
        from slurm.preflight import BadNode, Unreachable, abort, preflight

        run = self.config.run_folder
        variables = rendezvous(environment)
        nodes = [environment.hostnames[node] for node in node_of_each_rank(environment)]
        try:
            device = choose_device(self.config.engine.device, environment.local_rank)
            preflight(run, variables, nodes, device, self.config.launch.preflight_seconds)
        except BadNode as error:
            abort(EndReason.BAD_NODE, f"node {nodes[environment.global_rank]} failed: {error}")
        except Unreachable as error:
            for node in error.nodes:
                AttemptLog(run).log_failure(Attempt.begin(0), EndReason.BAD_NODE, 0, node)
            abort(EndReason.LOST_PEERS, str(error))


def prepare(config: Config) -> None:
    """Do what a rank can do before it knows its place: import the slow packages and open the shards."""
    import torch

    from motionmae.data.open_shards import load_sources
    from motionmae.engine.deepspeed_engine import import_deepspeed
    from motionmae.training.setup import make_task

    import_deepspeed(torch.device("cuda" if config.engine.device == "cuda" else "cpu"))
    make_task(config)
    load_sources(config.data)


def become_rank(environment: submitit.JobEnvironment) -> None:
    """Write to the log of the rank whose place this standby process has taken, and count its age from now."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        log = os.open(environment.paths.stdout, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, descriptor)
        os.close(log)
    events.count_age_from_now()


def is_preempted(environment: submitit.JobEnvironment) -> bool:
    """Return whether Slurm is preempting this running job; False if Slurm does not answer."""
    job = scontrol.show_job(environment.job_id) if environment.cluster == "slurm" else None
    return job is not None and job.name == "RUNNING" and job.preempted


def requeue(handler: object) -> None:
    """Requeue the job through submitit's handler, which counts time limits, rewrites the pickle and exits."""
    assert callable(handler), "submitit installs its handler before it calls a job"
    try:
        handler(signal.SIGUSR2, None)
    except UncompletedJobError as error:
        say(f"error: {error} (launch.max_timeouts): submit the run again", file=sys.stderr)
        sys.exit(EndReason.USER_ERROR.exit_code)
    except (OSError, subprocess.SubprocessError) as error:  # the batch script tries it, too
        say(f"this node cannot requeue the job: {join_lines(error)}")
        sys.exit(EndReason.PREEMPTED.exit_code)
