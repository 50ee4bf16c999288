"""Rank, world size, master address, and port of this process, from torchrun's or Slurm's variables.

Training uses ports 20000 to 25999, and the pre-flight check ports 26000 to 31999. Both ranges are below the ports that
Linux gives to outgoing connections (32768 and above).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from motionmae.errors import UserError

PREFLIGHT_OFFSET = 6_000  # from the port of training to the port of the pre-flight check; size of each port range
INTERFACE_VARIABLE = "MOTIONMAE_MASTER_INTERFACE"
"""Network interface of rank 0's node at which the ranks meet after the pre-flight check (:mod:`slurm.preflight`)."""
SUFFIX_VARIABLE = "MOTIONMAE_MASTER_SUFFIX"
"""Appended to the name of rank 0's node, for sites whose nodes have a second name on the fast network."""
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which torchrun describes a rank."""
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
"""Slurm numbers the shell of ``salloc``, the batch script and other steps that ``srun`` did not start from here on."""
_OTHER_LAUNCHERS = {  # variable with the number of processes: launcher
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun",
    "MPI_WORLD_SIZE": "mpirun",
    "FLUX_JOB_SIZE": "flux run",
    "PALS_SIZE": "PALS",
    "JSM_NAMESPACE_SIZE": "jsrun",
}


def training_port(job_id: int, restarts: int, step: int = 0) -> int:
    """Return the port of the TCP store of a job step.

    A requeued job keeps its ID, and a hanging rank of the previous attempt may still hold the old port. The port
    therefore changes with every restart.
    """
    return 20_000 + (job_id * 31 + restarts * 7 + step) % PREFLIGHT_OFFSET


def preflight_port(port: int) -> int:
    return port + PREFLIGHT_OFFSET if port + PREFLIGHT_OFFSET < 1 << 16 else port - PREFLIGHT_OFFSET


def master_address(environment: Mapping[str, str], node: str) -> str:
    """Return MASTER_ADDR if it is given, else the name of rank 0's node with the site's suffix."""
    return environment.get("MASTER_ADDR") or node + environment.get(SUFFIX_VARIABLE, "")


def master_port(environment: Mapping[str, str], default: int) -> int:
    """Return MASTER_PORT if it is given, else ``default``. Raises UserError if it is not a port.

    0 counts as not given: rank 0 would listen at a port that no other rank knows.
    """
    port = _number(environment, "MASTER_PORT") or default
    if port >= 1 << 16:
        raise UserError(f"MASTER_PORT={port} is not a port: choose one from 1024 to 65535")
    return port


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) for this process.

    The values come from torchrun, from Slurm's variables, or describe a single process. A given MASTER_ADDR or
    MASTER_PORT wins over Slurm's. A variable that is empty counts as not set.

    Raises:
        UserError: some of torchrun's variables are not set or are no numbers; or the process is one of several that
            another launcher started, or srun was forgotten, so that every process would train alone.
    """
    environment = {key: value for key, value in environment.items() if value.strip()}
    given = {key: environment[key] for key in TORCHRUN_VARIABLES if key in environment}
    if len(given) == len(TORCHRUN_VARIABLES):
        _check_ranks(given)
        return given
    if "RANK" in given or "WORLD_SIZE" in given:
        unset = ", ".join(key for key in TORCHRUN_VARIABLES if key not in given)
        raise UserError(
            f"the environment sets {', '.join(given)} but not {unset}: start with torchrun or srun, or unset all five"
        )
    refuse_heterogeneous(environment)
    _refuse_other_launchers(environment)
    if _is_srun_step(environment):
        return _slurm_rank_environment(environment)
    if (tasks := _allocated_tasks(environment)) > 1:
        raise UserError(
            f"this Slurm allocation has {tasks} tasks but srun did not start the process: put `srun` before the "
            "command, or `srun --ntasks=1` to train with a single process"
        )
    port = str(master_port(environment, 0))
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": port}


def refuse_heterogeneous(environment: Mapping[str, str]) -> None:
    """Raise UserError in a heterogeneous Slurm job, each component of which numbers its ranks from 0."""
    if (components := _number(environment, "SLURM_HET_SIZE") or 1) > 1:
        raise UserError(
            f"this is a heterogeneous Slurm job of {components} components, but the ranks of a run need equal nodes: "
            "submit one job without `:` and `hetjob`"
        )


def tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node from Slurm's form, such as ``2(x3),1``; empty if the text has another form."""
    counts: list[int] = []
    for part in text.split(","):
        if (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip(), re.ASCII)) is None:
            return []
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def nodes_of_ranks(environment: Mapping[str, str], world: int) -> list[int]:
    """Return the index of the node of each rank, under a block distribution of the ranks.

    The number of ranks of each node comes from Slurm or torchrun; without either, all ranks are on one node.
    """
    counts = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if sum(counts) != world:
        local = _number(environment, "LOCAL_WORLD_SIZE") or (counts[0] if counts and counts[0] else world)
        return [rank // local for rank in range(world)]
    ends = list(accumulate(counts))
    return [next(node for node, end in enumerate(ends) if rank < end) for rank in range(world)]


def node_index(environment: Mapping[str, str], rank: int, world: int) -> int:
    """Return the index of this rank's node in the run, from the launcher itself where it tells."""
    if (group := _number(environment, "GROUP_RANK")) is not None:  # torchrun
        return group
    node = _number(environment, "SLURM_NODEID")  # right under every distribution of the ranks
    ours = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS")
    return node if node is not None and ours == (rank, world) else nodes_of_ranks(environment, world)[rank]


def _check_ranks(given: Mapping[str, str]) -> None:
    rank, world, _ = (_number(given, key) or 0 for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if master_port(given, 0) == 0 and world > 1:
        raise UserError(f"MASTER_PORT=0 cannot be shared by {world} ranks: choose a port from 1024 to 65535")
    if rank >= world:
        raise UserError(f"RANK={rank} must be less than WORLD_SIZE={world}: start with torchrun or srun, or unset both")


def _refuse_other_launchers(environment: Mapping[str, str]) -> None:
    for variable, launcher in _OTHER_LAUNCHERS.items():
        size = _number(environment, variable) or 1
        # srun --mpi=pmi2 sets PMI_SIZE too; Open MPI starts its own daemons with srun and then its processes by itself
        of_srun = variable == "PMI_SIZE" and size == _number(environment, "SLURM_STEP_NUM_TASKS")
        if size > 1 and not of_srun:
            raise UserError(
                f"{launcher} started {size} processes ({variable}={size}), each of which would train alone: start with "
                "torchrun or srun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process"
            )


def _is_srun_step(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process as a task, and not as the shell of an interactive step."""
    ranks = _number(environment, "SLURM_STEP_NUM_TASKS")
    if ranks is None or (_number(environment, "SLURM_STEP_ID") or 0) >= _FIRST_SPECIAL_STEP:
        return False
    return ranks > 1 or (_number(environment, "SLURM_NTASKS") or 1) == 1


def _allocated_tasks(environment: Mapping[str, str]) -> int:
    """Return the number of tasks that the allocation was asked for."""
    if tasks := _number(environment, "SLURM_NTASKS") or _number(environment, "SLURM_NPROCS"):
        return tasks
    nodes = _number(environment, "SLURM_JOB_NUM_NODES") or _number(environment, "SLURM_NNODES") or 1
    if asked := _number(environment, "SLURM_NTASKS_PER_NODE"):
        return asked * nodes
    counts = tasks_per_node(environment.get("SLURM_TASKS_PER_NODE", ""))
    one_a_cpu = environment.get("SLURM_TASKS_PER_NODE") == environment.get("SLURM_JOB_CPUS_PER_NODE")
    if one_a_cpu and nodes == 1:  # Slurm counts the cores where nobody asked for tasks, as with --exclusive
        return 1
    return max(sum(counts), nodes)


def _slurm_rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    needed = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
    if unset := [key for key in needed if key not in environment]:
        raise UserError(
            f"the environment sets SLURM_STEP_NUM_TASKS but not {', '.join(unset)}: start with srun or torchrun, or "
            "unset SLURM_STEP_NUM_TASKS"
        )
    restarts, job, step = (
        _number(environment, key) or 0 for key in ("SLURM_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    )
    port = master_port(environment, training_port(job, restarts, step))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": master_address(environment, host_names(environment["SLURM_STEP_NODELIST"])[0]),
        "MASTER_PORT": str(port),
    }


def host_names(text: str) -> Sequence[str]:
    """Return the names in a host list of Slurm, such as ``node[1-3,7]``."""
    from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

    return _parse_node_list(text)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """Return the value of a variable; None if it is unset or empty. Raises UserError if it is not a whole number."""
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdecimal():
        raise UserError(f"{name}={text} is not a whole number: set it to one, or unset it")
    return int(text)
