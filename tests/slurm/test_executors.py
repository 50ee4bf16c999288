import sys
from pathlib import Path

import pytest

from motionmae.config import Config, absolute_paths, load_config
from motionmae.errors import UserError
from slurm import executors

CODE, LOGS = Path("/run/code/abc"), Path("/run/logs/now")


def _config(**values: object) -> Config:
    config = absolute_paths(load_config("demo"))
    return config.updated({"launch": values})


def _script(config: Config, **extra: str) -> str:
    return executors.TrainingExecutor(
        config, LOGS, CODE, extra, {"NCCL_SOCKET_IFNAME": "ib0", "PYTHONPATH": "x"}
    ).script()


def test_the_script_asks_for_what_the_config_says() -> None:
    lines = _script(
        _config(
            nodes=4,
            ntasks_per_node=8,
            gpus_per_node=8,
            cpus_per_task=12,
            time=90,
            signal_seconds=200,
            partition="big",
            account="vision",
            qos="long",
            constraint="a100",
            exclude="node[3-4]",
            comment="for B's table",
        )
    ).splitlines()
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --time=90",
        "#SBATCH --signal=USR2@200",
        "#SBATCH --partition=big",
        "#SBATCH --account=vision",
        "#SBATCH --qos=long",
        "#SBATCH --constraint=a100",
        "#SBATCH --exclude='node[3-4]'",
        "#SBATCH --comment='for B'\"'\"'s table'",
        "#SBATCH --requeue",
        "#SBATCH --chdir=/run/code/abc",
        "#SBATCH --job-name=demo",
        "export OMP_NUM_THREADS=1",
        "export NCCL_SOCKET_IFNAME=ib0",
    ):
        assert line in lines
    (command,) = (line for line in lines if " srun " in line)
    assert command.startswith(
        f"exec {sys.executable} -m slurm.batch.supervisor {Path.cwd()}/runs/demo --max-retries=5 --node-counts=4 "
    )
    assert " -- srun --unbuffered " in command
    assert command.endswith(f" -- {sys.executable} -u -m submitit.core._submit {LOGS}")
    assert "--kill-on-bad-exit=1 --cpus-per-task=12" in command
    assert not any("PYTHONPATH=x" in line for line in lines)


def test_the_script_is_silent_on_what_is_not_asked() -> None:
    script = _script(_config(gpus_per_node=0))
    for option in ("partition", "account", "qos", "constraint", "exclude", "comment", "gpus-per-node"):
        assert f"--{option}" not in script


def test_spares_are_requested_and_the_batch_script_knows_where_the_run_fits() -> None:
    """24 clips of a step divide by 8 x 1 to 3 ranks, and not by 8 x 4."""
    config = _config(nodes=3, spares=2, min_nodes=1, ntasks_per_node=1, gpus_per_node=0)
    config = config.updated({"optim.global_batch_size": 24, "engine.micro_batch_size": 8})
    lines = _script(config).splitlines()
    assert "#SBATCH --nodes=3-5" in lines
    assert not any(
        "ntasks-per-node" in line for line in lines if line.startswith("#SBATCH")
    )  # see the lab's test_sbatch
    assert "#SBATCH --no-kill" in lines
    (command,) = (line for line in lines if " srun " in line)
    assert " --node-counts=3,1 " in command
    assert " --standby --no-kill -- srun " in command
    plain = _script(_config(nodes=3, standby=False))
    assert "no-kill" not in plain
    assert "--standby" not in plain


def test_further_sbatch_options_win() -> None:
    assert "#SBATCH --time=5\n" in _script(_config(time=90), time="5")


def test_a_rank_imports_from_the_snapshot_before_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert executors.job_environment(_config(), CODE, "slurm")["PYTHONPATH"] == "/run/code/abc:/mine"
    monkeypatch.delenv("PYTHONPATH")
    assert executors.job_environment(_config(), CODE, "slurm")["PYTHONPATH"] == "/run/code/abc"


def test_the_shell_s_own_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    on_cpu = executors.job_environment(_config(gpus_per_node=0, cpus_per_task=6), CODE, "slurm")
    assert (on_cpu["NCCL_DEBUG"], on_cpu["OMP_NUM_THREADS"]) == ("INFO", "6")
    assert executors.job_environment(_config(gpus_per_node=8, cpus_per_task=6), CODE, "slurm")["OMP_NUM_THREADS"] == "1"


def test_deterministic_kernels_of_cublas_are_chosen_before_the_job_starts() -> None:
    chosen = "export CUBLAS_WORKSPACE_CONFIG=:4096:8"
    assert chosen in _script(_config().updated({"engine.deterministic": True}))
    assert chosen not in _script(_config())


def test_folders_are_those_of_the_submitting_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("demo", ["data.shards=shards", "output_dir=runs", "monitoring.discovery=sd"])
    absolute = absolute_paths(config)
    assert (absolute.data.shards, absolute.output_dir) == (str(tmp_path / "shards"), str(tmp_path / "runs"))
    assert (absolute.monitoring.discovery, absolute.monitoring.tls_key) == (str(tmp_path / "sd"), "")
    remote = absolute_paths(config.updated({"data.shards": "s3://bucket/k400"}))
    assert remote.data.shards == "s3://bucket/k400"
    for given, written in (("x", str(Path.cwd() / "x")), ("$TMPDIR/x", "$TMPDIR/x"), ("", "")):
        data = absolute_paths(config.updated({"data.cache": given, "data.beton": given})).data
        assert (data.cache, data.beton) == (written, written)


@pytest.mark.parametrize("extra", [{"comment": "a\nb"}, {"mem": "a\\' --uid=0"}, {"a\nb": "1"}])
def test_no_option_of_a_site_file_ends_its_line_of_the_script(extra: dict[str, str]) -> None:
    with pytest.raises(UserError, match="is not possible: "):
        _script(_config(), **extra)


def test_a_folder_whose_name_sbatch_would_misread_is_refused() -> None:
    with pytest.raises(UserError, match=r"--chdir=/a\\b is not possible: it holds a backslash"):
        executors.TrainingExecutor(_config(), LOGS, Path("/a\\b"), {}, {})


def test_only_named_variables_of_the_shell_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-shell")
    script = _script(_config())
    assert "secret-of-the-shell" not in script
    exported = [line.split("=")[0].removeprefix("export ") for line in script.splitlines() if "export " in line]
    assert exported == [
        "OMP_NUM_THREADS",
        "TORCH_FR_BUFFER_SIZE",
        "TORCH_FR_DUMP_TEMP_FILE",
        "TORCH_NCCL_DUMP_ON_TIMEOUT",
        "NCCL_DEBUG",
        "NCCL_SOCKET_IFNAME",
        "PYTHONPATH",
        "SUBMITIT_EXECUTOR",
    ]


def test_every_variable_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "NCCL_DEBUG", "PYTHONPATH", "TORCH_FR_BUFFER_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    config = _config(gpus_per_node=8, master_interface="ib0")
    expected = {
        "OMP_NUM_THREADS": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": f"{Path.cwd()}/runs/demo/logs/collectives_rank_",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "NCCL_DEBUG": "WARN",
        "MOTIONMAE_MASTER_INTERFACE": "ib0",
        "PYTHONPATH": "/run/code/abc",
    }
    suffix = executors.job_environment(_config(master_suffix="-ib"), CODE, "slurm")
    assert suffix["MOTIONMAE_MASTER_SUFFIX"] == "-ib"
    assert "MOTIONMAE_MASTER_INTERFACE" not in suffix
    assert executors.job_environment(config, CODE, "slurm") == expected
    assert executors.job_environment(config, CODE, "local") == expected | {"GLOO_SOCKET_IFNAME": "lo"}
    assert executors.job_environment(config, CODE, "slurm", {"NCCL_DEBUG": "INFO"})["NCCL_DEBUG"] == "INFO"


def test_the_batch_script_gets_every_number_of_the_config() -> None:
    config = _config(
        max_retries=7, nodes=3, ntasks_per_node=2, signal_seconds=210, preflight_seconds=33, heartbeat_seconds=11,
        max_timeouts=9, cpus_per_task=6, gpus_per_node=0,
    )  # fmt: skip
    executor = executors.TrainingExecutor(config, LOGS, CODE, {}, {})
    assert executor.max_num_timeout == 9
    (command,) = (line for line in executor.script().splitlines() if " srun " in line)
    supervisor, srun, _ = command.split(" -- ")
    assert supervisor.split()[4:] == [
        f"{Path.cwd()}/runs/demo", "--max-retries=7", "--node-counts=3", "--ntasks-per-node=2", "--signal-seconds=210",
        "--join-seconds=33", "--heartbeat-seconds=11", "--hang-seconds=610.0", "--standby",
    ]  # fmt: skip
    assert srun.split() == [
        "srun", "--unbuffered", "--output", f"{LOGS}/%j_%t_log.out", "--kill-on-bad-exit=1", "--cpus-per-task=6",
        "--distribution=block",
    ]  # fmt: skip


@pytest.mark.parametrize(("spares", "least", "goes_on"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_a_run_with_spares_or_a_smallest_size_goes_on_without_a_node(spares: int, least: int, goes_on: bool) -> None:
    script = _script(_config(nodes=2, spares=spares, min_nodes=least, ntasks_per_node=1, gpus_per_node=0))
    assert ("#SBATCH --no-kill\n" in script) is goes_on
    assert (" --no-kill -- srun " in script) is goes_on
    assert f"#SBATCH --nodes={'2-3' if spares else 2}\n" in script


def test_gpus_per_task_need_a_fixed_number_of_nodes() -> None:
    values = {"gpus_per_node": 4, "ntasks_per_node": 4, "gpu_option": "gpus-per-task"}
    script = _script(_config(nodes=2, spares=1, **values))
    assert "#SBATCH --nodes=3\n" in script
    assert "#SBATCH --gpus-per-task=1\n" in script


def test_a_chain_has_a_name_of_its_own_folder() -> None:
    names = {executors.job_name(_config(chain=1).updated({"output_dir": folder})) for folder in ("/a", "/b")}
    assert len(names) == 2
    assert all(len(name) == len("demo-") + 8 and name.startswith("demo-") for name in names)
    assert executors.job_name(_config(chain=0)) == "demo"
