"""Rank, world size, master address, and port of this process, from torchrun's or Slurm's variables.

Training uses ports 20000 to 25999, and the pre-flight check ports 26000 to 31999. Both ranges are below the ports that
Linux gives to outgoing connections (32768 and above).
"""

from collections.abc import Mapping

from motionmae.errors import UserError

PREFLIGHT_OFFSET = 6_000  # from the port of training to the port of the pre-flight check; size of each port range
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def training_port(job_id: int, restarts: int, step: int = 0) -> int:
    """Return the port of the TCP store of a job step.

    A requeued job keeps its ID, and a hanging rank of the previous attempt may still hold the old port. The port
    therefore changes with every restart.
    """
    return 20_000 + (job_id * 31 + restarts * 7 + step) % PREFLIGHT_OFFSET


def preflight_port(port: int) -> int:
    return port + PREFLIGHT_OFFSET


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) for this process.

    The values come from torchrun, from Slurm's variables, or describe a single process.

    Raises:
        UserError: some of torchrun's variables are not set; or srun was forgotten in a Slurm allocation of several
            tasks, in which every process would train alone.
    """
    given = {key: environment[key] for key in _TORCHRUN if key in environment}
    if len(given) == len(_TORCHRUN):
        return given
    if "RANK" in given or "WORLD_SIZE" in given:
        unset = ", ".join(key for key in _TORCHRUN if key not in given)
        raise UserError(
            f"the environment sets {', '.join(given)} but not {unset}: start with torchrun or srun, or unset all five"
        )
    if "SLURM_STEP_NUM_TASKS" in environment:
        return _slurm_rank_environment(environment)
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks > 1:
        raise UserError(
            f"this Slurm allocation has {tasks} tasks but srun did not start the process: put `srun` before the command"
        )
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def _slurm_rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    port = training_port(int(environment["SLURM_JOB_ID"]), restarts, int(environment["SLURM_STEP_ID"]))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": _parse_node_list(environment["SLURM_STEP_NODELIST"])[0],
        "MASTER_PORT": str(port),
    }
