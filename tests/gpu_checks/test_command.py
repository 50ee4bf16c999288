"""`motionmae doctor gpu`, whole, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from motionmae.commands import app
from motionmae.gpu_checks.catalogue import BY_NAME, CHECKS

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = {check.name for check in CHECKS if not (check.needs_gpu or check.needs_gpus)}
MINUTES = "30"  # on a busy machine


def doctor(folder: Path, *words: str, **variables: str) -> dict:
    """The figures of a run in a process of its own, which must succeed."""
    figures = folder / "gpu.json"
    command = [sys.executable, "-m", "motionmae", "doctor", "gpu", "--device", "cpu", "--quick", *words]
    done = subprocess.run(
        [*command, "--minutes", MINUTES, "--json", str(figures)],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(figures.read_text()), "printed": done.stdout}


@pytest.mark.long
def test_all_that_needs_no_gpu_passes_and_the_rest_is_not_run(tmp_path: Path) -> None:
    found = doctor(tmp_path)
    checks = {check["name"]: check for check in found["checks"]}
    assert list(checks) == list(BY_NAME)
    assert {name for name, check in checks.items() if check["verdict"] == "passed"} == ON_CPU
    assert {check["verdict"] for name, check in checks.items() if name not in ON_CPU} == {"not run"}
    assert checks["determinism"]["figures"]["smallest_model"]["deterministic"] is True
    assert checks["host_waits"]["figures"]["waits_for_the_device"] == {}
    assert checks["checkpoint"]["figures"]["zero3"]["unequal"] == []
    assert (
        checks["checkpoint"]["figures"]["zero3"]["loss"]
        == checks["checkpoint"]["figures"]["zero3"]["loss_after_restore"]
    )
    assert checks["loader_and_kill"]["figures"]["largest_loss_error"] < 1e-6
    assert checks["preemption"]["figures"]["exit_code"] == 0
    for name in ("environment", "host_waits", "speed_tiny", "loader_and_kill", "finetuning"):
        assert checks[name]["not_run"], name
    assert "attention" in found["printed"]
    assert "needs a GPU" in found["printed"]
    assert not (tmp_path / "cache").exists()  # a CPU's speed says nothing about a GPU's


@pytest.mark.long
def test_several_ranks_prove_their_collectives(tmp_path: Path) -> None:
    found = doctor(tmp_path, "--only", "nccl", "overlap_comm", LOCAL_WORLD_SIZE="2", RANK="0", WORLD_SIZE="2")
    checks = {check["name"]: check for check in found["checks"]}
    assert {check["verdict"] for check in checks.values()} == {"passed"}
    assert checks["nccl"]["figures"]["ranks"] == checks["overlap_comm"]["figures"]["ranks"] == 2
    assert checks["overlap_comm"]["figures"]["weight_error"] <= 1e-6


def test_further_ranks_of_torchrun_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert app.main(["doctor", "gpu", "--device", "cpu"]) == 0


def test_a_wrong_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["doctor", "gpu", "--minutes", "nan"]) == 2
    assert "--minutes must be a positive, finite number" in capsys.readouterr().err


def test_a_machine_without_a_gpu_fails_and_says_why(tmp_path: Path) -> None:
    words = ["doctor", "gpu", "--only", "environment", "--json", str(tmp_path / "gpu.json")]
    variables = {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "motionmae", *words],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "environment (" in done.stdout
    assert "this run is for GPUs, but" in done.stdout
    (check,) = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert check["verdict"] == "failed"
    assert check["figures"]["torch"]


def test_the_documentation_names_every_check() -> None:
    text = (ROOT / "docs/operate/gpu.md").read_text()
    assert [name for name in BY_NAME if f"`{name}`" not in text] == []
