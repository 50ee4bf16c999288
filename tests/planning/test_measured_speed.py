"""The file of measured speeds, and what `motionmae plan` makes of it."""

import json
from pathlib import Path

import pytest

from motionmae.commands import app
from motionmae.config import load_config
from motionmae.planning.gpus import PUBLISHED_MFU, find_gpu
from motionmae.planning.measured_speed import MeasuredSpeed, add_speeds, find_speed, read_speeds, speed_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def speed(
    device: str = "NVIDIA H200", model: str = "vit_l", mfu: float = 0.31, compiled: bool = False
) -> MeasuredSpeed:
    return MeasuredSpeed(
        device=device,
        model=model,
        compiled=compiled,
        mfu=mfu,
        clips_per_second=400.0,
        micro_batch_size=16,
        torch="2.14.1",
    )


def plan(options: str, tmp_path: Path) -> dict:
    figures = tmp_path / "plan.json"
    command, arguments = app.parse(f"plan {options} --videos 240000 --json {figures}".split())
    assert command.run(arguments) == 0
    return json.loads(figures.read_text())


def test_plan_uses_the_measured_mfu_of_the_same_gpu_and_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add_speeds([speed(), speed(compiled=True, mfu=0.42)]) == tmp_path / "motionmae/gpu.json"
    found = plan("--config vitl_k400 --gpu h200-141", tmp_path)
    assert found["assumed"]["mfu"] == 0.31
    assert found["clips_per_second"] == pytest.approx(32 * 989e12 * 0.31 / found["plan"]["flops_per_clip"])
    assert "measured by `motionmae doctor gpu` on NVIDIA H200, micro-batch 16" in capsys.readouterr().out
    assert plan("--config vitl_k400 --gpu h200-141 engine.compile=true", tmp_path)["assumed"]["mfu"] == 0.42
    assert plan("--config vitl_k400 --gpu h200-141 --mfu 0.2", tmp_path)["assumed"]["mfu"] == 0.2
    for other in (
        "--config vitl_k400 --gpu h100-80",
        "--config vitb_k400 --gpu h200-141",
        "--config finetune_vitl_k400 --gpu h200-141",
        "--config vitl_k400 --gpu h200-141 --peak-tflops 500",
    ):
        assert plan(other, tmp_path)["assumed"]["mfu"] == PUBLISHED_MFU
    assert "published for such training" in capsys.readouterr().out


def test_new_measurements_replace_old_ones_of_the_same_case() -> None:
    add_speeds([speed(), speed(model="vit_b")])
    add_speeds([speed(mfu=0.35)])
    assert {(one.model, one.mfu) for one in read_speeds()} == {("vit_l", 0.35), ("vit_b", 0.31)}
    config = load_config("vitl_k400")
    assert find_speed(config, find_gpu("h200-141")) == speed(mfu=0.35)
    assert find_speed(config, find_gpu("h100-80")) is None


def test_h100_cards_of_other_peaks_are_other_cards() -> None:
    add_speeds([speed("NVIDIA H100 PCIe", mfu=0.5)])
    config = load_config("vitl_k400")
    assert find_speed(config, find_gpu("h100-80")) is None
    assert find_speed(config, find_gpu("h100-pcie-80")) == speed("NVIDIA H100 PCIe", mfu=0.5)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"speeds": [{"device": 7}]}', b'{"speeds": [{"mfu": NaN}]}', b"\xff" * 9, b"[" * 100_000]
)
def test_a_damaged_file_counts_as_none(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    speed_file().parent.mkdir()
    speed_file().write_bytes(content)
    assert plan("--config vitl_k400 --gpu h200-141", tmp_path)["assumed"]["mfu"] == PUBLISHED_MFU
    assert "gpu.json cannot be read" in caplog.text


def test_the_cache_folder_is_that_of_the_xdg_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert speed_file() == tmp_path / "home/.cache/motionmae/gpu.json"
