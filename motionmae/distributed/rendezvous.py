"""Where the ranks of a run find each other: rank, world size and master address from torchrun or Slurm."""

from collections.abc import Mapping

from motionmae.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun's variables are in ``environment``, or would be.

    Raises:
        UserError: see :func:`init_distributed`.
    """
    given = {key: environment[key] for key in _TORCHRUN if key in environment}
    if len(given) == len(_TORCHRUN):
        return given
    if "RANK" in given or "WORLD_SIZE" in given:
        missing = ", ".join(key for key in _TORCHRUN if key not in given)
        raise UserError(
            f"the environment sets {', '.join(given)} but not {missing}: start with torchrun or srun, or unset them"
        )
    if "SLURM_STEP_NUM_TASKS" in environment:
        return _slurm_place(environment)
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks > 1:
        raise UserError(
            f"this Slurm allocation has {tasks} tasks but the process was not started by srun: put `srun` before it"
        )
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def _slurm_place(environment: Mapping[str, str]) -> dict[str, str]:
    from submitit.slurm.slurm import _parse_node_list  # knows every form of Slurm's host lists

    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": _parse_node_list(environment["SLURM_STEP_NODELIST"])[0],
        # A requeued job keeps its id, and the port of its former life may still be held by a rank that hangs.
        # 20000-31999 lies below the ports that Linux gives to outgoing connections.
        "MASTER_PORT": str(20_000 + (job * 31 + restarts * 7 + step) % 12_000),
    }
