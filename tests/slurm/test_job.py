import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from motionmae.config import load_config
from slurm.job import TrainJob, rendezvous

_SLURM = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[03-05,11]",
}


def _rendezvous(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    for key in ("SLURM_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    return rendezvous(submitit.JobEnvironment())


def test_slurm_ranks_meet_on_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rendezvous(monkeypatch, **_SLURM)
    assert 20_000 <= int(found.pop("MASTER_PORT")) < 26_000
    assert found == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2",
        "MASTER_ADDR": "gpu03",
    }


def test_a_given_address_and_port_win(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rendezvous(monkeypatch, **_SLURM, MASTER_ADDR="10.1.0.7", MASTER_PORT="29500")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.1.0.7", "29500")


def test_uneven_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "3,2(x2),1", "SLURM_NODEID": "3", "SLURM_PROCID": "7", "SLURM_LOCALID": "0"}
    found = _rendezvous(monkeypatch, **_SLURM | uneven)
    assert (found["LOCAL_WORLD_SIZE"], found["GROUP_RANK"]) == ("1", "3")


def test_the_port_changes_with_job_and_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = {
        _rendezvous(monkeypatch, **_SLURM | {"SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(restart)})[
            "MASTER_PORT"
        ]
        for job in range(4711, 4715)
        for restart in range(3)
    }
    assert len(ports) == 12


def test_local_ranks_meet_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rendezvous(
        monkeypatch,
        SUBMITIT_EXECUTOR="local",
        SUBMITIT_LOCAL_JOB_ID="99",
        SUBMITIT_LOCAL_NTASKS="2",
        SUBMITIT_LOCAL_JOB_NUM_NODES="1",
        SUBMITIT_LOCAL_GLOBALID="1",
        SUBMITIT_LOCAL_LOCALID="1",
        MOTIONMAE_LOCAL_RESTARTS="3",
    )
    assert (found["MASTER_ADDR"], found["RANK"], found["LOCAL_RANK"]) == ("127.0.0.1", "1", "1")
    monkeypatch.setenv("MOTIONMAE_LOCAL_RESTARTS", "4")
    assert rendezvous(submitit.JobEnvironment())["MASTER_PORT"] != found["MASTER_PORT"]


def test_a_job_with_gpus_never_trains_on_the_cpu_instead() -> None:
    devices = [
        TrainJob(load_config("demo", [f"launch.gpus_per_node={gpus}", f"engine.device={device}"])).config.engine.device
        for gpus in (0, 8)
        for device in ("auto", "cpu", "cuda")
    ]
    assert devices == ["auto", "cpu", "cuda", "cuda", "cpu", "cuda"]


def test_a_requeued_job_is_the_very_job_that_was_submitted() -> None:
    job = TrainJob(load_config("demo"))
    before = pickle.dumps(job)
    again = job.checkpoint()
    assert pickle.dumps(again.function) == before
    assert vars(again.function) == {"config": job.config}
    assert (again.args, again.kwargs) == ((), {})


def test_submitting_needs_no_torch() -> None:
    """It takes seconds to import, and a login node may lack it."""
    modules = "slurm.submission, slurm.batch.supervisor"
    text = f"import sys; sys.path.insert(0, '.'); import {modules}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", text], cwd=root).returncode == 0
