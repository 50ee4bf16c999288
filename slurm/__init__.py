"""Launch runs on Slurm or on this machine through submitit, and requeue them after preemptions and failures."""
