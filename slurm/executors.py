"""What Slurm is asked for: from the configuration to submitit's executors and the sbatch script."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from motionmae.config import Config, LaunchConfig
from motionmae.errors import UserError
from slurm.local_executor import DetachedLocalExecutor


def log_folder(run: Path) -> Path:
    """A new submission's folder for submitit's pickles and what the ranks print."""
    return run / "logs" / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")


def job_environment(config: Config, code: Path, cluster: str) -> dict[str, str]:
    """Variables of every rank; what the submitting shell has set already stays, but for the import path.

    A rank on a GPU gets one OpenMP thread (its cores decode), one on the CPU all of its cores. The flight recorder
    keeps the last collectives of each rank and writes them into the run folder when one of them times out.
    """
    launch = config.launch
    wanted = {
        "OMP_NUM_THREADS": "1" if launch.gpus_per_node else str(launch.cpus_per_task),
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(Path(config.output_dir) / config.name / "logs" / "collectives_rank_"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "NCCL_DEBUG": "WARN",
    }
    if cluster == "local":
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {key: os.environ.get(key, value) for key, value in wanted.items()} | {"PYTHONPATH": path}


def rank_environment(config: Config, code: Path, site: Mapping[str, str]) -> dict[str, str]:
    """:func:`job_environment` on Slurm, changed by the site's variables, but for the import path."""
    return job_environment(config, code, "slurm") | {k: v for k, v in site.items() if k != "PYTHONPATH"}


TEXTS = ("partition", "account", "qos", "constraint", "exclude", "comment")
"""Keys of the `launch` section that sbatch has options of the same name for; empty: not asked."""


class TrainingExecutor(SlurmExecutor):
    """submitit's executor for Slurm, whose script can be shown on a machine without Slurm.

    Args:
        config: the run; its `launch` section says what to ask for.
        folder: where submitit keeps pickles and logs.
        code: folder of the code snapshot: working directory and first import path.
        extra: further sbatch options by their long names, which win over everything else.
        environment: further variables of every rank.
    """

    def __init__(
        self, config: Config, folder: Path, code: Path, extra: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        launch = config.launch
        super().__init__(folder, max_num_timeout=launch.max_timeouts)
        self._run, self._max_retries = Path(config.output_dir) / config.name, launch.max_retries
        exports = rank_environment(config, code, environment)
        optional = {key: getattr(launch, key) for key in TEXTS}
        self.update_parameters(
            job_name=config.name,
            nodes=launch.nodes,
            ntasks_per_node=launch.ntasks_per_node,
            gpus_per_node=launch.gpus_per_node or None,
            cpus_per_task=launch.cpus_per_task,
            time=launch.time,
            signal_delay_s=launch.signal_seconds,
            stderr_to_stdout=True,
            setup=[f"export {key}={shlex.quote(value)}" for key, value in exports.items()],
            # srun takes over neither of these from the script (the second since Slurm 22.05)
            srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={launch.cpus_per_task}"],
            additional_parameters={"requeue": True, "chdir": str(code), **extra},
            **{key: value for key, value in optional.items() if value},
        )

    @classmethod
    def name(cls) -> str:
        """The plugin's name; submitit derives it from the class's."""
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        """Usable everywhere: that sbatch is there is checked where a job is submitted."""
        return 2

    def script(self) -> str:
        """The sbatch script of a submission."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """Submitit's script, with :mod:`slurm.requeue_policy` in the place of the shell, to judge how srun ends."""
        text = super()._make_submission_file_text(command, uid)
        batch = shlex.join([sys.executable, "-m", "slurm.requeue_policy", str(self._run), str(self._max_retries)])
        before, srun, after = text.rpartition("\nsrun ")
        assert srun, "submitit starts the ranks with srun"
        return f"{before}\nexec {batch} srun {after}"


def local_executor(config: Config, folder: Path, run: Path, code: Path, lock: int) -> DetachedLocalExecutor:
    """The executor of ``--cluster local``; see :class:`slurm.local_executor.DetachedLocalExecutor` for the arguments."""
    launch = config.launch
    environment = job_environment(config, code, "local")
    executor = DetachedLocalExecutor(folder, run, code, environment, lock, launch.max_timeouts)
    executor.update_parameters(
        tasks_per_node=launch.ntasks_per_node,
        gpus_per_node=launch.gpus_per_node,
        timeout_min=launch.time,
        signal_delay_s=launch.signal_seconds,
    )
    return executor


_OWN_FLAGS = {
    "array": "--seeds",
    "nodes": "--nodes",
    "ntasks-per-node": "--ntasks-per-node",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "time": "--time",
    "signal": "--signal-seconds",
}
_OWN = ("ntasks", "output", "error", "open-mode", "chdir", "requeue", "no-requeue", "job-name")


def refuse_own(option: str, where: str) -> None:
    """Refuse an sbatch option that surviving a cluster depends on: an array would train several times in one folder.

    Raises:
        UserError: naming the flag that asks for the same, where there is one.
    """
    if option in _OWN_FLAGS:
        raise UserError(f"{where} {option} would undo what the launcher relies on: use {_OWN_FLAGS[option]}")
    if option in _OWN:
        raise UserError(f"{where} {option} is set by the launcher itself: leave it out")


def sbatch_options(texts: list[str]) -> dict[str, str]:
    """Read ``--sbatch KEY=VALUE`` options.

    Raises:
        UserError: for one without an equals sign, or that is the launcher's own.
    """
    pairs = [text.removeprefix("--").partition("=") for text in texts]
    for text, (key, equals, _) in zip(texts, pairs, strict=True):
        if not key or not equals:
            raise UserError(f"--sbatch {text}: write the long option and its value, for example --sbatch mem=200G")
        refuse_own(key, "--sbatch")
    return {key: value for key, _, value in pairs}


def options_of(launch: LaunchConfig) -> dict[str, str]:
    """What a `launch` section asks of sbatch, by long options, for jobs that are not submitit's."""
    wanted = {
        "nodes": launch.nodes,
        "ntasks-per-node": launch.ntasks_per_node,
        "gpus-per-node": launch.gpus_per_node,
        "cpus-per-task": launch.cpus_per_task,
        "time": launch.time,
        **{key: getattr(launch, key) for key in TEXTS},
    }
    return {key: str(value) for key, value in wanted.items() if value}


def minutes(text: str) -> int:
    """Read a time limit in Slurm's forms: MINUTES, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; seconds count as a minute.

    Raises:
        UserError: for any other form.
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    well_formed = re.fullmatch(r"\d+", days) if dash else days == ""
    if not well_formed or not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise UserError(f"--time {text}: write minutes, HH:MM:SS or D-HH:MM:SS")
    numbers = [int(part) for part in parts]
    if dash:
        hour, minute, second = [*numbers, 0, 0][:3]
        return (int(days) * 24 + hour) * 60 + minute + (second > 0)
    if len(numbers) == 3:
        hour, minute, second = numbers
        return hour * 60 + minute + (second > 0)
    if len(numbers) == 2:
        return numbers[0] + (numbers[1] > 0)  # MM:SS
    return numbers[0]
