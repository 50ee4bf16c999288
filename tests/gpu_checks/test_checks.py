"""The checks themselves, on the CPU where a GPU is missing, and against made-up profiles."""

import math
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import DeviceType

from motionmae.config import load_config
from motionmae.engine import deepspeed_engine
from motionmae.gpu_checks.advice import advise, speeds_of
from motionmae.gpu_checks.check import CheckError, CheckResult, NotRunError, Setting, Verdict
from motionmae.gpu_checks.checks import attention, numerics, nvml, several_gpus
from motionmae.gpu_checks.checks import engine as engine_check
from motionmae.gpu_checks.checks import speed as speed_check
from motionmae.gpu_checks.checks.attention import Shape, shapes_of, try_shape
from motionmae.gpu_checks.checks.host_waits import device_waits, reported_waits
from motionmae.gpu_checks.checks.nvml import NAMES, scrape
from motionmae.gpu_checks.checks.speed import fitting
from motionmae.gpu_checks.fixtures import TINY, load
from motionmae.gpu_checks.measure import Kernel, busy_seconds, kernels_of, longest, shared_seconds
from motionmae.planning.flops import step_flops
from motionmae.planning.measured_speed import MeasuredSpeed
from motionmae.planning.memory import predict_memory

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(device="cpu", quick=True, folder=tmp_path)


def test_masks_and_gradients_agree_with_themselves(setting: Setting) -> None:
    assert set(numerics.check_masks(setting).values()) == {True}
    found = numerics.check_gradients(setting)
    assert max(found["fp32"]["loss_error"], found["fp32"]["gradient_error"]) < 1e-6
    assert 0 < found["bf16"]["gradient_error"] < 0.2


def test_wrong_gradients_are_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    original = numerics.loss_and_gradients

    def wrong(*inputs: Any, bf16: bool) -> Any:
        loss, gradients = original(*inputs, bf16=bf16)
        calls.append(bf16)
        return loss, {name: (2 if len(calls) > 1 else 1) * value for name, value in gradients.items()}

    calls: list[bool] = []
    monkeypatch.setattr(numerics, "loss_and_gradients", wrong)
    with pytest.raises(CheckError, match=r"the gradients in fp32 are wrong by 100.00%"):
        numerics.check_gradients(setting)


def test_shapes_of_attention_are_those_of_the_paper() -> None:
    encoder, decoder, last = shapes_of(load_config("vitb_k400"))
    assert encoder == Shape(32, 12, 160, 160, 64)
    assert decoder == Shape(32, 6, 1568, 1568, 64)
    assert last == Shape(32, 6, 1408, 1568, 64)
    assert next(shapes_of(load_config("vith_k400"))).width == 80
    assert next(shapes_of(load_config("vitl_ssv2_32f"))).keys % 128 == 64


def test_errors_of_attention_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(2, 2, 48, 64, 64)
    found = try_shape(shape, 0.0, CPU, timed=True)
    assert found["finite"]
    assert 0 < found["error"] < 0.02
    assert 0 < found["gradient_error"] < 0.05
    assert found["ms"] > 0
    monkeypatch.setattr(attention, "attend", lambda q, k, v: 0 * q + v.mean(2, keepdim=True))
    assert try_shape(shape, 0.0, CPU, timed=False)["gradient_error"] > 0.5
    monkeypatch.setattr(attention, "attend", lambda q, k, v: (q @ k.mT).softmax(-1) @ (v / 0))
    assert not try_shape(shape, 0.0, CPU, timed=False)["finite"]


def test_kernels_of_a_config_are_not_those_of_later_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92400)
    with attention._kernels_of(load_config("vitl_ssv2_32f"), torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", ["vitb_k400", "vitl_k400", "vith_k400", "vitl_ssv2_32f"])
def test_inputs_of_attention_are_made_on_the_gpu(name: str) -> None:
    with FakeTensorMode():  # simulates a GPU
        for shape in shapes_of(load_config(name)):
            parts = attention._inputs(shape, -120.0, torch.device("cuda"))
            output = attention.attend(*parts)
            assert [part.dtype for part in parts] == [torch.bfloat16] * 3
            assert output.device.type == "cuda"
            assert output.shape == (shape.batch, shape.heads, shape.queries, shape.width)


def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CUDA, named: bool = False) -> Any:
    time_range = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=time_range, device_type=device, is_user_annotation=named)


def test_a_profile_is_summed_up_by_kernels_alone() -> None:
    kernels = kernels_of(
        [
            event("aten::mm", 0, 90, DeviceType.CPU),
            event("Optimizer.step", 0, 100, named=True),
            event("gemm", 10, 30),
            event("flash_fwd", 20, 50),
            event("gemm", 60, 65),
        ]
    )
    assert [kernel.name for kernel in kernels] == ["gemm", "flash_fwd", "gemm"]
    assert busy_seconds(kernels) == pytest.approx(45e-6)
    assert shared_seconds(kernels[:1], kernels[1:]) == pytest.approx(10e-6)
    assert longest(kernels, 1) == {"flash_fwd": pytest.approx(0.03)}
    assert attention.is_attention("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel")
    assert attention.is_attention("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma")
    assert not attention.is_attention("triton_poi_fused_gelu__scaled_dot_product_flash_attention_backward_3")
    assert not attention.is_attention("ampere_bf16_s16816gemm_bf16_128x128")
    assert busy_seconds([Kernel("a", 0, 1)]) == pytest.approx(1e-6)


def test_a_wait_for_the_whole_device_is_counted_with_its_place() -> None:
    deepspeed_engine.import_deepspeed(CPU)
    from deepspeed.accelerator import get_accelerator

    with device_waits() as found:
        get_accelerator().synchronize()
        get_accelerator().synchronize()
    assert sum(found.values()) == 2
    assert all(place.startswith("test_checks.py:") for place in found)
    get_accelerator().synchronize()
    assert sum(found.values()) == 2


def test_only_reports_of_waits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        words = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
        warnings.warn(words, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with reported_waits(on_gpu=True) as found:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (function memcpy_and_sync)", stacklevel=1)
    assert modes == ["warn", "default"]
    ((place, count),) = found.items()
    assert (Path(place.split(":")[0]).name, count) == ("test_checks.py", 2)


def test_the_exporter_is_read_as_prometheus_reads_it(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # of a cluster, which does not reach this machine
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fake = Path(__file__).parents[1] / "monitoring/fake_nvml"
    monkeypatch.syspath_prepend(str(fake))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    found = scrape(setting)
    assert set(found) == {"GPU-aaaa", "GPU-bbbb"}
    assert set(NAMES) <= found["GPU-aaaa"].keys()


@pytest.mark.slow
def test_torch_and_the_exporter_must_see_the_same_gpu(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "monitoring/fake_nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    uuid, used = ["aaaa"], [float(scrape(setting)["GPU-aaaa"]["gpu_memory_used_bytes"])]
    name = ["NVIDIA H200"]
    cuda = SimpleNamespace(
        empty_cache=lambda: None,
        get_device_name=lambda device: name[0],
        synchronize=lambda: None,
        mem_get_info=lambda: (80e9 - used[0], 80e9),
        get_device_properties=lambda device: SimpleNamespace(uuid=uuid[0]),
    )
    monkeypatch.setattr(nvml, "torch", SimpleNamespace(cuda=cuda, empty=lambda *size, **options: None, uint8=None))
    with pytest.raises(CheckError, match=r"after an allocation of 1 GiB the exporter saw 0.00 GB more"):
        nvml.check_nvml(setting)
    used[0] += 20e9
    with pytest.raises(CheckError, match=r"the exporter says .* GB are used, torch .* GB"):
        nvml.check_nvml(setting)
    uuid[0] = "cccc"
    with pytest.raises(CheckError, match="NVML does not know the GPU cccc"):
        nvml.check_nvml(setting)
    name[0] = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    with pytest.raises(NotRunError, match=r"slice of one \(MIG\)"):
        nvml.check_nvml(setting)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An H200 whose memory is what the plan says, times ``factor``. The steps run on the CPU."""
    gpu = SimpleNamespace(factor=1.0, planned=0, held=0)
    properties = SimpleNamespace(total_memory=141e9)
    monkeypatch.setattr(speed_check, "device_of", lambda setting: CPU)
    for name, value in {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "get_device_name": lambda device: "NVIDIA H200",
        "get_device_properties": lambda device: properties,
        "memory_allocated": lambda: gpu.held,
        "max_memory_allocated": lambda: gpu.held + gpu.factor * gpu.planned,
        "max_memory_reserved": lambda: 2 * gpu.planned,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def kernels(work: Any) -> list[Kernel]:
        work()
        return [Kernel("flash_fwd", 0, 1e4), Kernel("gemm", 5e3, 4e4)]

    monkeypatch.setattr(speed_check, "device_kernels", kernels)
    return gpu


@pytest.mark.slow
def test_speed_memory_and_profile_of_a_fake_gpu(setting: Setting, fake_gpu: SimpleNamespace) -> None:
    config, on_gpu = load(TINY, setting), setting.model_copy(update={"device": "cuda"})
    fake_gpu.planned, fake_gpu.held = predict_memory(config, 1).peak, 5_000_000_000
    found = speed_check.measure(config, on_gpu)
    assert found["mfu"] == pytest.approx(found["tflop_per_s"] / 989)
    assert found["tflop_per_s"] == pytest.approx(step_flops(config).model * found["clips_per_second"] / 1e12)
    assert found["clips_per_second"] == pytest.approx(4 / found["ms"] * 1e3)
    assert found["used_gb"] == found["planned_gb"]  # without what earlier checks hold
    assert found["kernels_per_step"] == 1
    assert found["attention_share"] == pytest.approx(10 / 45)
    assert found["busy_share"] == pytest.approx(20 / found["ms"])
    assert found["longest_ms"] == {"gemm": pytest.approx(17.5), "flash_fwd": pytest.approx(5)}
    assert MeasuredSpeed.model_fields.keys() <= found.keys()
    fake_gpu.planned, fake_gpu.factor = 10e9, 1.0
    with pytest.raises(CheckError, match=r"a step takes 10.00 GB, the plan says 0.\d\d GB") as failed:
        speed_check.measure(config, on_gpu)
    assert failed.value.figures["kernels_per_step"] == 1  # the figures stay


def test_ranks_meet_before_a_step_is_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def kernels(work: Any) -> list[Kernel]:
        order.append("profiler")
        work()
        return [Kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 0, 40), Kernel("gemm", 30, 90)]

    monkeypatch.setattr(several_gpus, "device_kernels", kernels)
    monkeypatch.setattr(several_gpus, "gather_objects", lambda value: order.append("meeting"))
    monkeypatch.setattr(several_gpus, "take_step", lambda engine, batch: order.append("step"))
    nothing: Any = None
    assert several_gpus._hidden_share(nothing, nothing) == pytest.approx(0.25)
    assert order == ["profiler", "meeting", "step"]


def test_a_loss_that_is_not_a_number_is_no_agreement(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_check, "build_engine", lambda config, stage: SimpleNamespace(stage=stage, close=int))
    losses = [1.0, 1.0, 1.0, math.nan]
    monkeypatch.setattr(engine_check, "take_steps", lambda engine, config, numbers: [losses[engine.stage]])
    with pytest.raises(CheckError, match=r"the losses of the ZeRO stages differ by nan%"):
        engine_check.check_zero_stages(setting)
    losses[3] = 1.001
    assert engine_check.check_zero_stages(setting)["spread"] == pytest.approx(0.001)


def test_compiled_extensions_are_found_where_torch_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache/torch_extensions/py311_cu130/fused_adam").mkdir(parents=True)
    (tmp_path / "chosen/cpu_adam").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert engine_check._extensions() == {"fused_adam"}
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "chosen"))
    assert engine_check._extensions() == {"cpu_adam"}


def test_a_small_gpu_gets_a_smaller_micro_batch() -> None:
    config = load_config("vitb_k400", ["launch.gpus_per_node=1", "optim.global_batch_size=32"])
    assert fitting(config, 141e9) == config
    small = fitting(config, 10e9)
    assert 0 < small.engine.micro_batch_size < 32
    with pytest.raises(CheckError, match="no micro-batch"):
        fitting(config, 1e9)


def result(name: str, **figures: Any) -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.PASSED, figures=figures)


def speed(name: str, clips: float, compiled: bool = False, **more: Any) -> CheckResult:
    figures: dict[str, Any] = {
        "model": "vit_b",
        "compiled": compiled,
        "clips_per_second": clips,
        "device": "NVIDIA H200",
    }
    figures |= {"micro_batch_size": 32, "torch": "2.14.1", "mfu": 0.3, "first_step_s": 40.0, "gpu_gb": 141.0}
    return result(name, **(figures | {"used_gb": 12.0, "planned_gb": 11.0} | more))


def test_advice_follows_from_the_figures() -> None:
    loader = result("loader_and_kill", clips_per_core=100.0, clips_per_second=700.0)
    eager, compiled = speed("speed_vitb", 800.0), speed("speed_vitb_compiled", 1000.0, compiled=True)
    fits, compiling, workers = advise([eager, compiled, loader])
    assert "engine.micro_batch_size=32 fits" in fits
    assert (
        "set engine.compile=true; compiled steps run at 1.25 times the speed, and the first one takes 40 s" in compiling
    )
    assert "data.workers=10 decode the 1000 clips/s of this GPU (100 clips/s a core)" in workers
    assert "leave engine.compile=false" in advise([eager, speed("speed_vitb_compiled", 810.0, compiled=True)])[1]
    more_than_planned = advise([speed("speed_vitb", 800.0, used_gb=22.0)])[0]
    assert int(more_than_planned.split()[-1]) < int(fits.split()[-1])
    assert advise([loader, result("masks")]) == []


def test_speeds_for_the_plan_are_those_of_known_gpus() -> None:
    (found,) = speeds_of([speed("speed_vitb", 800.0), speed("speed_vitb", 800.0, mfu=None), result("environment")])
    assert (found.device, found.model, found.mfu, found.torch) == ("NVIDIA H200", "vit_b", 0.3, "2.14.1")
    assert speeds_of([speed("speed_vitb", 800.0, mfu=1.7)]) == []
