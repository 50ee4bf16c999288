"""Scripts of the launcher as a real sbatch reads them, on nodes with GPUs of a type."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from motionmae.config import load_config
from slurm.executors import TrainingExecutor
from slurm.sbatch import parse_sbatch_options, run_options
from tests.slurm_lab.lab import Lab


class GpuLab(Lab):
    """A lab whose nodes have two GPUs of the type a100, which are clones of the null device."""

    def _write_files(self) -> None:
        super()._write_files()
        conf = self.folder / "slurm.conf"
        conf.write_text(conf.read_text().replace("NodeName=node", "GresTypes=gpu\nNodeName=node", 1))
        conf.write_text(conf.read_text().replace(" CPUs=", " Gres=gpu:a100:2 RealMemory=1000 CPUs="))
        for number in range(2):
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=a100 File={self.folder}/gpu[0-1]\n")


@pytest.fixture(scope="module")
def gpu_lab(lab_machine: None) -> Iterator[Lab]:
    with GpuLab(nodes=2) as started:
        yield started


LAUNCH = ["launch.nodes=2", "launch.ntasks_per_node=2", "launch.cpus_per_task=1"]
GPUS = [f"launch.gpus_per_node={gpus}" for gpus in ("2", "a100:2")]
OPTIONS = ["gpus-per-node", "gres", "gpus-per-task"]


def test_sbatch_accepts_each_form_of_gpus_and_of_flags(gpu_lab: Lab, tmp_path: Path) -> None:
    extra = parse_sbatch_options(["exclusive", "contiguous=true", "mem=10M", "hold=no"])
    of_site = run_options({"exclusive": "true", "overcommit": None, "reboot": "false", "nice": "5"}, "site.yaml")
    for gpus in GPUS:
        for option in OPTIONS:
            for further in (extra, of_site):
                config = load_config("demo", [*LAUNCH, gpus, f"launch.gpu_option={option}", f"output_dir={tmp_path}"])
                script = TrainingExecutor(config, tmp_path, tmp_path, further, {}).script()
                (tmp_path / "script").write_text(script)
                done = gpu_lab.run("sbatch", "--test-only", str(tmp_path / "script"))
                assert done.returncode == 0, f"{gpus} {option} {further}\n{done.stderr}\n{script}"
                assert "on nodes node[1-2]" in done.stderr


def test_a_job_gets_its_spares_where_they_are_free(gpu_lab: Lab, tmp_path: Path) -> None:
    """With --nodes=1-2 --ntasks-per-node=1, Slurm 22.05 gives one node, however many are free."""
    for tasks in (1, 2):
        for option in OPTIONS:
            launch = ["launch.spares=1", f"launch.ntasks_per_node={tasks}", "launch.cpus_per_task=1"]
            launch += ["launch.gpus_per_node=2", f"launch.gpu_option={option}"]
            config = load_config("demo", [*launch, f"output_dir={tmp_path}"])
            script = TrainingExecutor(config, tmp_path, tmp_path, {}, {}).script()
            (tmp_path / "script").write_text(script)
            done = gpu_lab.run("sbatch", "--test-only", str(tmp_path / "script"))
            assert "on nodes node[1-2]" in done.stderr, f"{tasks} {option}\n{done.stderr}\n{script}"


def test_sbatch_refuses_what_the_nodes_do_not_have(gpu_lab: Lab, tmp_path: Path) -> None:
    """So that the test above can fail."""
    for gpus in ("h100:2", "a100:3"):
        config = load_config("demo", [*LAUNCH, f"launch.gpus_per_node={gpus}", f"output_dir={tmp_path}"])
        (tmp_path / "script").write_text(TrainingExecutor(config, tmp_path, tmp_path, {}, {}).script())
        assert gpu_lab.run("sbatch", "--test-only", str(tmp_path / "script")).returncode != 0


def test_names_that_the_launcher_refuses_are_names_to_sbatch(gpu_lab: Lab) -> None:
    """Sbatch reads them as the launcher's own options, so they may not pass."""
    for name in ("--part=low", "--tasks-per-node=1", "--exclud=node1", "--dist=cyclic"):
        assert gpu_lab.run("sbatch", "--test-only", name, "--wrap=true").returncode == 0, name
