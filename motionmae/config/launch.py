"""What is asked of a cluster."""

from dataclasses import dataclass

from motionmae.config.checks import at_least, check


@dataclass(frozen=True)
class LaunchConfig:
    """What Slurm is asked for; `slurm/submit.py` has a flag for each."""

    nodes: int = 1
    """Nodes of the job."""
    ntasks_per_node: int = 8
    """Training processes a node, one a GPU."""
    gpus_per_node: int = 8
    """GPUs asked for a node; 0 on a machine without."""
    cpus_per_task: int = 12
    """CPU cores a rank, for decoding (data.workers) and the training process."""
    time: int = 1440
    """Time limit of one attempt of the job; a longer run requeues itself."""
    signal_seconds: int = 120
    """How long before the limit Slurm signals: a step, a save and a margin must fit."""
    max_timeouts: int = 1000
    """Time-outs after which a run stops requeueing itself."""
    max_retries: int = 5
    """Failures in a row, without a new checkpoint between them, after which the job is not tried again by itself."""
    preflight_seconds: int = 120
    """Time in which every node must have shown that its device, its storage and its network work."""
    partition: str = ""
    """Slurm partition (empty: the site's default)."""
    account: str = ""
    """Slurm account to charge."""
    qos: str = ""
    """Slurm quality of service."""
    constraint: str = ""
    """Node features asked for, e.g. a100."""
    exclude: str = ""
    """Nodes never to be used, as a Slurm host list."""
    comment: str = ""
    """Free text that squeue shows."""

    def __post_init__(self) -> None:
        for key in ("nodes", "ntasks_per_node", "cpus_per_task", "time", "max_timeouts", "preflight_seconds"):
            at_least(f"launch.{key}", getattr(self, key), 1)
        for key in ("gpus_per_node", "max_retries"):
            at_least(f"launch.{key}", getattr(self, key), 0)
        at_least("launch.signal_seconds", self.signal_seconds, 1)
        check(
            self.signal_seconds < 60 * self.time,
            "launch.signal_seconds",
            self.signal_seconds,
            f"it must be less than the time limit, launch.time={self.time}",
        )
