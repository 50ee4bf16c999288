"""Rendezvous of the ranks: rank, world size, and master address from torchrun or Slurm variables."""

from collections.abc import Mapping

from motionmae.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Torchrun's variables for this process: as given, derived from a Slurm step, or for a single process.

    Raises:
        UserError: see :func:`motionmae.distributed.process_group.init_distributed`.
    """
    given = {key: environment[key] for key in _TORCHRUN if key in environment}
    if len(given) == len(_TORCHRUN):
        return given
    if "RANK" in given or "WORLD_SIZE" in given:
        unset = ", ".join(key for key in _TORCHRUN if key not in given)
        raise UserError(
            f"the environment sets {', '.join(given)} but not {unset}: start with torchrun or srun, or unset them"
        )
    if "SLURM_STEP_NUM_TASKS" in environment:
        return _slurm_environment(environment)
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks > 1:
        raise UserError(
            f"this Slurm allocation has {tasks} tasks but the process was not started by srun: put `srun` before it"
        )
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def master_port(job: int, restarts: int, step: int = 0) -> int:
    """MASTER_PORT of a Slurm job step, in 20000 to 25999.

    A requeued job keeps its ID, and a hanging rank of the previous attempt may still hold that attempt's port. The
    port therefore changes with the restart count. It lies below the range that Linux gives to outgoing connections
    (from 32768).
    """
    return 20_000 + (job * 31 + restarts * 7 + step) % 6_000


def _slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": _parse_node_list(environment["SLURM_STEP_NODELIST"])[0],
        "MASTER_PORT": str(master_port(job, restarts, step)),
    }
