"""submitit's Slurm executor with the sbatch script of a training run, and the variables of its ranks."""

import os
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from motionmae.config import Config
from motionmae.distributed.rendezvous import INTERFACE_VARIABLE, SUFFIX_VARIABLE
from slurm.sbatch import check_environment, check_options, requested_resources


def log_folder(run: Path) -> Path:
    """Return the folder for the pickle and the logs of a new submission."""
    return run / "logs" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


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
        self._run, self._max_retries = config.run_folder, launch.max_retries
        variables = job_environment(config, code, "slurm", environment)
        check_environment(variables)
        options = {"job-name": config.name, "output": folder, "chdir": code, **extra, **requested_resources(launch)}
        check_options(options)
        if "gres" in extra and launch.gpu_option == "gres" and launch.gpus_per_node:
            extra = {**extra, "gres": f"{requested_resources(launch)['gres']},{extra['gres']}"}
        self.update_parameters(
            job_name=config.name,
            signal_delay_s=launch.signal_seconds,
            stderr_to_stdout=True,
            setup=[f"export {key}={shlex.quote(value)}" for key, value in variables.items()],
            # srun inherits neither of the first two from the script (the second since Slurm 22.05). A site's default
            # distribution could place ranks on other nodes than slurm/job.py expects.
            srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={launch.cpus_per_task}", "--distribution=block"],
            additional_parameters={"requeue": True, "chdir": str(code), **extra},
            **requested_resources(launch),
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
        policy = shlex.join([sys.executable, "-m", "slurm.batch.supervisor", str(self._run), str(self._max_retries)])
        before, srun, after = text.rpartition("\nsrun ")
        assert srun, "submitit starts the ranks with srun"
        return f"{before}\nexec {policy} srun {after}"
