"""The NVML source where one GPU of two fails. The fake NVML raises, for one device, what the real one raises."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from monitoring import gpu
from monitoring.gpu import open_gpus
from tests.training.launch import wait_until


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(gpu, "_RETRY_SECONDS", 0.01)
    import pynvml

    yield pynvml
    sys.modules.pop("pynvml", None)


@pytest.fixture
def lost(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of the GPUs that have fallen off the bus: each of their functions fails, as after XID 79."""
    numbers: set[int] = set()

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_fail(handle: int, *more: Any) -> Any:
            if handle in numbers:
                raise nvml.NVMLError("GPU is lost")
            return call(handle, *more)

        return call_or_fail

    for name in dir(nvml):
        if name.startswith("nvmlDevice") and name != "nvmlDeviceGetCount":
            monkeypatch.setattr(nvml, name, failing(getattr(nvml, name)))
    return numbers


def gpus_read(source: gpu.GpuSource) -> set[str]:
    return {labels["gpu"] for name, labels, _ in source.samples() if name != "gpu_xid_events_total"}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if "Not Supported" not in text]  # of the older GPU


@pytest.mark.parametrize("number", [0, 1])
def test_a_gpu_that_is_lost_at_the_start_hides_no_other(
    number: int, nvml: ModuleType, lost: set[int], caplog: pytest.LogCaptureFixture
):
    nvml._xids.clear()
    lost.add(number)
    with closing(open_gpus()) as source:
        assert gpus_read(source) == {str(1 - number)}
    assert warnings_of(caplog) == [f"GPU {number} is not available: GPU is lost"]


def test_a_gpu_that_is_lost_later_is_one_warning(lost: set[int], caplog: pytest.LogCaptureFixture):
    with closing(open_gpus()) as source:
        assert gpus_read(source) == {"0", "1"}
        lost.add(0)
        assert [gpus_read(source) for _ in range(3)] == [{"1"}] * 3
    assert warnings_of(caplog) == ["GPU 0 is not available: GPU is lost"]


def test_xid_events_of_the_other_gpus_are_counted_after_an_error(
    nvml: ModuleType, lost: set[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """NVML fails the wait for events of all GPUs when one is lost. The XID of a lost GPU is counted, too."""
    waits = iter([nvml.NVMLError("GPU is lost")])
    wait = nvml.nvmlEventSetWait_v2

    def fail_once(events: Any, milliseconds: int) -> Any:
        if error := next(waits, None):
            lost.add(1)
            raise error
        return wait(events, milliseconds)

    monkeypatch.setattr(nvml, "nvmlEventSetWait_v2", fail_once)
    with closing(open_gpus()) as source:
        wait_until(lambda: any("xid" in labels for _, labels, _ in source.samples()), "the XID of GPU 0")
    assert "XID events is not available: GPU is lost" in warnings_of(caplog)
    assert "XID events of GPU 1 is not available: GPU is lost" in warnings_of(caplog)


def test_a_driver_that_fails_is_a_warning_and_a_missing_one_is_not(
    nvml: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    for code, text in ((9, "Driver Not Loaded"), (18, "Driver/library version mismatch")):
        error = nvml.NVMLError(text)
        error.value = code
        monkeypatch.setattr(nvml, "nvmlInit", lambda error=error: (_ for _ in ()).throw(error))
        assert open_gpus().samples() == []
    assert warnings_of(caplog) == ["no GPU metrics: Driver/library version mismatch"]


def test_the_xid_of_a_lost_gpu_is_counted(nvml: ModuleType, lost: set[int], monkeypatch: pytest.MonkeyPatch):
    """XID 79 says that the GPU is lost, which then does not tell its UUID."""
    wait = nvml.nvmlEventSetWait_v2

    def lose_and_wait(events: Any, milliseconds: int) -> Any:
        lost.add(0)
        return wait(events, milliseconds)

    monkeypatch.setattr(nvml, "nvmlEventSetWait_v2", lose_and_wait)
    with closing(open_gpus()) as source:
        wait_until(lambda: any("xid" in labels for _, labels, _ in source.samples()), "the XID")
        assert gpus_read(source) == {"1"}


def test_every_reading_of_a_gpu_in_base_units(nvml: ModuleType):
    """An H100 at 97 % with 60 of 80 GiB, 650.5 W, 123,456 J, 61 degrees, 1755 and 2619 MHz; see fake_nvml."""
    readings = gpu._readings(nvml)
    found = {(name, *labels.values()): read(0) * scale for name, labels, scale, read in readings}
    assert found == pytest.approx(
        {
            ("gpu_utilization_ratio",): 0.97,
            ("gpu_memory_used_bytes",): 60 * 2**30,
            ("gpu_memory_total_bytes",): 80 * 2**30,
            ("gpu_power_watts",): 650.5,
            ("gpu_energy_joules_total",): 123_456,
            ("gpu_temperature_celsius",): 61,
            ("gpu_clock_hertz", "sm"): 1.755e9,
            ("gpu_clock_hertz", "memory"): 2.619e9,
            ("gpu_ecc_errors_total", "corrected"): 0,  # the fake counts by kind
            ("gpu_ecc_errors_total", "uncorrected"): 1,
            ("gpu_throttle_active", "power_cap"): 1,
            ("gpu_throttle_active", "hardware"): 0,
            ("gpu_throttle_active", "thermal_hardware"): 0,
            ("gpu_throttle_active", "thermal_software"): 0,
            ("gpu_throttle_active", "power_brake"): 0,
        }
    )


@pytest.mark.parametrize(
    ("bit", "reason"),
    [
        (0x4, "power_cap"),
        (0x8, "hardware"),
        (0x40, "thermal_hardware"),
        (0x20, "thermal_software"),
        (0x80, "power_brake"),
    ],
)
def test_bits_of_throttling_are_those_of_nvml(bit: int, reason: str, nvml: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """nvmlClocksThrottleReason* of nvml.h."""
    monkeypatch.setattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: bit)
    active = {
        labels["reason"]: read(0) for name, labels, _, read in gpu._readings(nvml) if name == "gpu_throttle_active"
    }
    assert [name for name, value in active.items() if value] == [reason]


@pytest.mark.parametrize("value", [2**32 - 1, 2**64 - 1])
def test_a_value_of_all_ones_is_unknown(value: int, nvml: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", lambda handle: value)
    with closing(open_gpus()) as source:
        names = {name for name, labels, _ in source.samples() if labels["gpu"] == "0"}
    assert "gpu_power_watts" not in names
    assert "gpu_temperature_celsius" in names
