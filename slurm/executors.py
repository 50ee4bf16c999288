"""submitit's Slurm executor with the sbatch script of a training run, and the variables of its ranks."""

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from motionmae.config import Config, LaunchConfig
from motionmae.config.schema import accumulation_steps
from motionmae.distributed.rendezvous import INTERFACE_VARIABLE, SUFFIX_VARIABLE
from motionmae.errors import UserError
from slurm.sbatch import check_environment, check_options, requested_resources

HANG_MARGIN = 10.0
"""Seconds in which the ranks' own watchdogs find a hang before the supervisor does."""


def log_folder(run: Path) -> Path:
    """Return the folder for the pickle and the logs of a new submission."""
    return run / "logs" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def job_name(config: Config) -> str:
    """Return the job's name. The jobs of a chain wait for every job of their name, so it must name one run folder."""
    folder = hashlib.sha256(os.fsencode(config.run_folder)).hexdigest()[:8]
    return f"{config.name}-{folder}" if config.launch.chain else config.name


def job_environment(config: Config, code: Path, cluster: str, site: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables of every rank.

    Precedence: built-in defaults < submitting shell < site file. PYTHONPATH always begins with the code snapshot.
    A rank on a GPU gets one OpenMP thread because its cores decode; a rank on the CPU gets a thread per core. NCCL's
    flight recorder keeps the last collectives of each rank and writes them to the run folder after a timeout.
    """
    launch = config.launch
    defaults = {
        "OMP_NUM_THREADS": "1" if launch.gpus_per_node else str(launch.cpus_per_task),
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(config.run_folder / "logs" / "collectives_rank_"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "NCCL_DEBUG": "WARN",
        **config.engine.environment,
        **{
            name: value
            for name, value in ((SUFFIX_VARIABLE, launch.master_suffix), (INTERFACE_VARIABLE, launch.master_interface))
            if value
        },
    }
    if cluster == "local":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {key: os.environ.get(key, value) for key, value in defaults.items()}
    return variables | dict(site or {}) | {"PYTHONPATH": path}


class TrainingExecutor(SlurmExecutor):
    """submitit's Slurm executor. Its script can also be printed on a machine without Slurm.

    Args:
        code: code snapshot; the working directory and the first import path of the job.
        extra: further sbatch options by long name; they take precedence.
        environment: further variables of every rank, from the site file.
    """

    def __init__(
        self, config: Config, folder: Path, code: Path, extra: Mapping[str, str | bool], environment: Mapping[str, str]
    ) -> None:
        launch = config.launch
        super().__init__(folder, max_num_timeout=launch.max_timeouts)
        self._config = config
        variables = job_environment(config, code, "slurm", environment)
        check_environment(variables)
        resources = requested_resources(launch)
        most = launch.nodes + launch.spares
        nodes = {"nodes": f"{launch.nodes}-{most}" if launch.spares else most}
        if "gpus_per_task" in resources:  # Slurm 22.05 refuses it for a range of nodes
            nodes = {"nodes": most}
        elif launch.spares and launch.ntasks_per_node == 1:
            # sbatch's default; where it is given, Slurm 22.05 takes only the smallest number of the range
            del resources["ntasks_per_node"]
        name = job_name(config)
        options = {"job-name": name, "output": folder, "chdir": code, **extra, **resources}
        check_options(options)
        if "gres" in extra and "gres" in resources:  # of the GPUs
            extra = {**extra, "gres": f"{resources['gres']},{extra['gres']}"}
        # By default Slurm ends a whole job minutes after a node was lost, when the run has long gone on without it.
        keep_allocation = {"no-kill": True} if goes_on_without_node(launch) else {}
        self.update_parameters(
            job_name=name,
            signal_delay_s=launch.signal_seconds,
            stderr_to_stdout=True,
            setup=[f"export {key}={shlex.quote(value)}" for key, value in variables.items()],
            # srun inherits neither of the first two from the script (the second since Slurm 22.05). A site's default
            # distribution could place ranks on other nodes than slurm/job.py expects.
            srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={launch.cpus_per_task}", "--distribution=block"],
            additional_parameters={"requeue": True, **keep_allocation, **nodes, "chdir": str(code), **extra},
            **resources,
        )

    @classmethod
    def affinity(cls) -> int:
        """Report this executor as always usable: the submission itself checks that sbatch exists."""
        return 2

    def script(self) -> str:
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """Return submitit's script with srun started by :mod:`slurm.batch.supervisor`."""
        text = super()._make_submission_file_text(command, uid)
        before, srun, after = text.rpartition("\nsrun ")
        options, program, _ = after.partition(command)
        assert srun, "submitit starts the ranks with srun"
        supervisor = [sys.executable, "-m", "slurm.batch.supervisor", *supervisor_arguments(self._config)]
        return f"{before}\nexec {shlex.join(supervisor)} -- srun {options}-- {program}\n"


def supervisor_arguments(config: Config) -> list[str]:
    """Return the arguments of :mod:`slurm.batch.supervisor` for a run."""
    launch = config.launch
    arguments = {
        "max-retries": launch.max_retries,
        "node-counts": ",".join(map(str, node_counts(config))),
        "ntasks-per-node": launch.ntasks_per_node,
        "signal-seconds": launch.signal_seconds,
        "join-seconds": launch.preflight_seconds,
        "heartbeat-seconds": launch.heartbeat_seconds,
        "hang-seconds": limit + HANG_MARGIN if (limit := config.watchdog.step_seconds) else 0.0,
    }
    options = [f"--{key}={value}" for key, value in arguments.items()]
    flags = {"--standby": launch.standby, "--no-kill": goes_on_without_node(launch)}
    return [str(config.run_folder), *options, *(flag for flag, is_set in flags.items() if is_set)]


def goes_on_without_node(launch: LaunchConfig) -> bool:
    """Return whether the run may go on inside its allocation after the loss of a node."""
    return launch.spares > 0 or launch.min_nodes > 0


def node_counts(config: Config) -> list[int]:
    """Return the numbers of nodes on which a run can train, the largest first: their ranks divide the batch."""
    launch = config.launch
    counts = [launch.nodes]
    for nodes in range(launch.nodes - 1, launch.min_nodes - 1 if launch.min_nodes else launch.nodes, -1):
        with suppress(UserError):
            accumulation_steps(config, nodes * launch.ntasks_per_node)
            counts.append(nodes)
    return counts
