"""Launch configuration: the resources that a run requests from Slurm."""

from pydantic import NonNegativeInt, PositiveInt, model_validator

from motionmae.config.section import Section, check


class LaunchConfig(Section):
    """Resources requested from Slurm. `slurm/submit.py` has a flag for each key."""

    nodes: PositiveInt = 1
    """Nodes of the job."""
    ntasks_per_node: PositiveInt = 8
    """Training processes (ranks) per node, one per GPU."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs requested per node; 0 on machines without GPUs."""
    cpus_per_task: PositiveInt = 12
    """CPU cores per rank, for decoding (data.workers) and the training process."""
    time: PositiveInt = 1440
    """Time limit of one attempt of the job, in minutes; `--time` also takes HH:MM:SS and D-HH:MM:SS. A longer run
    requeues itself."""
    signal_seconds: PositiveInt = 120
    """Seconds before the time limit at which Slurm sends the signal to save. A step, a save and a margin must fit."""
    max_timeouts: PositiveInt = 1000
    """Time limits that a run may reach before it stops requeueing itself."""
    max_retries: NonNegativeInt = 5
    """Consecutive failures without a new checkpoint that are retried."""
    preflight_seconds: PositiveInt = 120
    """Time limit of the pre-flight check of every node's device, storage and network."""
    partition: str = ""
    """Slurm partition. Empty: the cluster's default."""
    account: str = ""
    """Slurm account to charge."""
    qos: str = ""
    """Slurm quality of service."""
    constraint: str = ""
    """Required node features, for example a100."""
    exclude: str = ""
    """Nodes that the job must not use, as a Slurm host list, for example node[3-4]."""
    comment: str = ""
    """Free text shown by squeue."""

    @model_validator(mode="after")
    def _check(self) -> "LaunchConfig":
        check(
            self.signal_seconds < 60 * self.time,
            "launch.signal_seconds",
            self.signal_seconds,
            f"it must be less than the time limit, launch.time={self.time} minutes",
        )
        return self
