import json
from pathlib import Path

import pytest

from motionmae.commands import app
from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.planning.estimate import LOADER_SPEED, Assumptions, compare_choices, make_plan
from motionmae.planning.gpus import GPUS, find_gpu, peak_of_device
from motionmae.planning.measured_speed import speed_file
from tests.slurm import tiny
from tests.training.shards import make_shards

ASSUMED = Assumptions(find_gpu("a100-80"), 0.5)


def test_large_models_agree_with_the_paper() -> None:
    large, huge = (make_plan(load_config(name)) for name in ("vitl_k400", "vith_k400"))
    assert large.encoder_parameters / 1e6 == pytest.approx(305, rel=0.01)
    assert huge.encoder_parameters / 1e6 == pytest.approx(632, rel=0.01)
    assert (large.ranks, large.clips_per_step) == (32, 512)


def test_time_follows_from_the_shards(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    plan = make_plan(load_config("demo", [*tiny.overrides(shards), "data.repeated_sampling=2"]))
    assert (plan.videos, plan.steps_per_epoch, plan.clips_per_step) == (16, 2, 16)
    assert plan.clips_per_second(ASSUMED) == pytest.approx(2 * 156e12 / plan.flops_per_clip)
    days = plan.gpu_days(ASSUMED)
    assert days == pytest.approx(tiny.STEPS * 16 * plan.flops_per_clip / 156e12 / 86_400)
    assert plan.steps == tiny.STEPS
    assert make_plan(load_config("demo", ["data.shards=''"])).gpu_days(ASSUMED) is None


def test_recomputed_work_takes_its_time_and_loaders_keep_up() -> None:
    plain, recomputing = (
        make_plan(load_config("vitl_k400", [f"model.activation_checkpointing={mode}"])) for mode in ("none", "full")
    )
    whole = 1 + recomputing.recomputed_flops_per_clip / recomputing.flops_per_clip
    assert plain.clips_per_second(ASSUMED) == pytest.approx(whole * recomputing.clips_per_second(ASSUMED))
    a_node = plain.clips_per_second(ASSUMED) / 4
    assert 0 <= plain.loader_cores(ASSUMED, 8) - a_node / LOADER_SPEED < 1
    longer = make_plan(load_config("vitl_k400", ["clip.frames=32"]))
    assert longer.loader_cores(ASSUMED, 8) == pytest.approx(
        2 * longer.clips_per_second(ASSUMED) / 4 / LOADER_SPEED, abs=1
    )


def test_choices_cover_stages_and_checkpointing() -> None:
    config = load_config("vith_k400")
    small, large = (compare_choices(config, find_gpu(name)) for name in ("a100-40", "h200-141"))
    assert [(c.zero, c.checkpointing) for c in small] == [
        (zero, mode) for zero in range(4) for mode in ("none", "every_n", "full")
    ]
    for little, much in zip(small, large, strict=True):
        assert 0 < little.largest_micro_batch < much.largest_micro_batch
    assert small[0].recomputed_share == 0 < small[1].recomputed_share < small[2].recomputed_share < 0.34


def test_devices_are_identified_by_their_names() -> None:
    names = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA GB200": 2500, "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989}
    names |= {"NVIDIA H100 NVL": 835, "NVIDIA L4": 121, "NVIDIA L40": 181, "NVIDIA L40S": 362, "NVIDIA B200": 2250}
    names |= {"NVIDIA A10": 125, "NVIDIA A10G": 70, "Tesla T4": 65, "Tesla V100S-PCIE-32GB": 130, "NVIDIA A40": 149.7}
    names |= {"NVIDIA RTX A4000": 76.7, "NVIDIA RTX 6000 Ada Generation": 364.2, "NVIDIA GeForce RTX 5090": 209.5}
    assert {name: peak_of_device(name) for name in names} == names
    for other in (
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "Quadro K2000",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A1000",
    ):
        assert peak_of_device(other) is None
    with pytest.raises(UserError, match=r"unknown GPU a100: choose one of .*a100-80"):
        find_gpu("a100")
    assert all(name.endswith(f"-{gpu.gigabytes:.0f}") for name, gpu in GPUS.items())


def test_the_user_s_measured_speeds_are_not_read_by_tests() -> None:
    assert not speed_file().is_relative_to(Path.home() / ".cache")
    assert not speed_file().exists()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="is not divisible by"):
        make_plan(load_config("vitl_k400", ["launch.nodes=5"]))


def test_a_data_set_smaller_than_a_step_is_refused(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    with pytest.raises(UserError, match=r"16 samples, fewer than one step takes .*: set optim.global_batch_size="):
        make_plan(load_config("demo", [f"data.shards={shards}", "optim.global_batch_size=32"]))
    with pytest.raises(UserError, match="holds 7 samples"):
        make_plan(load_config("demo"), videos=7)


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [("finetune_vitb_k400", 86.5, 180.3), ("finetune_vitl_k400", 304.3, 596.8), ("vith_k400", 632.1, 1191.0)],
)
def test_classifiers_are_counted_as_in_papers(name: str, millions: float, gflops: float) -> None:
    plan = make_plan(load_config(name))
    assert (plan.classes, round(plan.classifier_parameters / 1e6, 1)) == (400, millions)
    assert round(plan.gflops_per_view, 1) == gflops


def test_classes_are_those_of_the_shards(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", classes=3)
    assert make_plan(load_config("demo", [f"data.shards={shards}"])).classes == 3


def _run_command(argv: str) -> int:
    command, arguments = app.parse(argv.split())
    return command.run(arguments)


def test_the_command_prints_the_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    figures = tmp_path / "plan.json"
    options = "engine.zero_stage=3 engine.micro_batch_size=8 --gpu h100-80 --mfu 0.35 --videos 240000 --loader-speed 85"
    assert _run_command(f"plan --config vitl_k400 --nodes 8 {options} --json {figures}") == 0
    shown = capsys.readouterr().out
    for text in (
        "331.7 M",
        "64 (8 nodes x 8)",
        "748800: 1600 epochs of 468",
        "at 0.35 MFU (given) of 989 TFLOP/s",
        "memory a GPU",
    ):
        assert text in shown
    assert "engine.zero_stage=3 model.activation_checkpointing=none engine.micro_batch_size=8" in shown
    assert "fits; the largest that fits and divides optim.global_batch_size=512 is 8" in shown
    written = json.loads(figures.read_text())
    assert len(written["choices"]) == 12
    plan = make_plan(load_config("vitl_k400", ["launch.nodes=8", "engine.micro_batch_size=8"]), 240_000)
    assumed = Assumptions(find_gpu("h100-80"), 0.35, 85)
    assert written["gpu_days"] == plan.gpu_days(assumed)
    assert written["loader_cores"] == plan.loader_cores(assumed, 8)


def test_the_command_reports_an_estimate_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options = "plan --config vitl_k400 --nodes 1 --gpu v100-16 engine.micro_batch_size=64"
    assert _run_command(options) == 0
    assert (
        "does NOT fit 16 GB; the largest that fits and divides optim.global_batch_size=512 is"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"--mfu must be a positive, finite number, not 0.0"):
        _run_command("plan --config vitl_k400 --mfu 0")
    with pytest.raises(UserError, match=r"--mfu must be at most 1, not 4.0"):
        _run_command("plan --config vitl_k400 --mfu 4")
    for flag, value in (("--mfu", "nan"), ("--peak-tflops", "inf"), ("--loader-speed", "inf")):
        with pytest.raises(UserError, match=f"{flag} must be a positive, finite number, not {value}"):
            _run_command(f"plan --config vitl_k400 {flag} {value}")


def test_no_gpu_speed_is_shown_for_a_run_on_cpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run_command("plan --config demo --videos 60") == 0
    shown = capsys.readouterr().out
    assert "2940: 420 epochs of 7 (60 videos)" in shown
    assert "MFU" not in shown
    assert _run_command("plan --config demo --videos 60 --gpu a100-80") == 0
    assert (
        "at 0.165 MFU (published for such training, not measured on this GPU) of 312 TFLOP/s" in capsys.readouterr().out
    )
