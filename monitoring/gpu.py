"""GPUs as NVML sees them. A field that a device does not support is left out; a driver that fails leaves all out."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from monitoring.rank_snapshots import Sample

logger = logging.getLogger(__name__)

_NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)
"""Drivers fill a field they do not know with ones."""
_WAIT_MILLISECONDS = 200
"""Between two looks at whether the session ends, which the trainer waits for."""
CLOSE_SECONDS = 1.0
"""How long a thread that may be waiting for a driver is waited for at the end."""


class GpuSource(Protocol):
    """Tells the state of the node's GPUs."""

    def samples(self) -> list[Sample]:
        """One sample for each metric of :data:`monitoring.metric_definitions.GPU`, GPU and further label."""

    def close(self) -> None:
        """Let go of the driver."""


class NoGpus:
    """A node without GPUs, or without their driver."""

    def samples(self) -> list[Sample]:
        """Nothing."""
        return []

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True)
class _Device:
    handle: Any
    labels: dict[str, str]


class Nvml:
    """The node's GPUs through nvidia-ml-py; XID events are counted by a thread that waits for them.

    Raises:
        Exception: NVML's own, if there is no driver.
    """

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._devices = [self._device(index) for index in range(pynvml.nvmlDeviceGetCount())]
        self._xids: Counter[tuple[str, str]] = Counter()
        self._failed: set[str] = set()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch_xids, name="xid-events", daemon=True)
        self._watcher.start()

    def samples(self) -> list[Sample]:
        """One sample for each supported metric of each GPU."""
        found: list[Sample] = []
        for device in self._devices:
            for name, more, scale, read in self._readings(device.handle):
                try:
                    value = read()
                except self._nvml.NVMLError as error:
                    self._say_once(f"{name} of GPU {device.labels['gpu']}", error)
                    continue
                if value not in _NOT_AVAILABLE:
                    found.append((name, {**device.labels, **more}, value * scale))
        for (gpu, xid), count in list(self._xids.items()):
            labels = next(device.labels for device in self._devices if device.labels["gpu"] == gpu)
            found.append(("gpu_xid_events_total", {**labels, "xid": xid}, count))
        return found

    def close(self) -> None:
        """End the thread and leave the driver; one that hangs is left as it is."""
        self._closed.set()
        self._watcher.join(CLOSE_SECONDS)
        if not self._watcher.is_alive():
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _device(self, index: int) -> _Device:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return _Device(handle, {"gpu": str(index), "UUID": self._nvml.nvmlDeviceGetUUID(handle)})

    def _readings(self, handle: Any) -> list[tuple[str, dict[str, str], float, Callable[[], float]]]:
        """Name, further labels, the base units in one of the driver's, and how to read it."""
        nvml = self._nvml
        ecc, volatile = nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_VOLATILE_ECC
        reasons = {
            "power_cap": nvml.nvmlClocksThrottleReasonSwPowerCap,
            "hardware": nvml.nvmlClocksThrottleReasonHwSlowdown,
            "thermal_hardware": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
            "thermal_software": nvml.nvmlClocksThrottleReasonSwThermalSlowdown,
            "power_brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        }
        clocks = {"sm": nvml.NVML_CLOCK_SM, "memory": nvml.NVML_CLOCK_MEM}
        errors = {
            "corrected": nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            "uncorrected": nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        }
        return [
            ("gpu_utilization_ratio", {}, 0.01, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            ("gpu_memory_used_bytes", {}, 1, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            ("gpu_memory_total_bytes", {}, 1, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            ("gpu_power_watts", {}, 1e-3, lambda: nvml.nvmlDeviceGetPowerUsage(handle)),
            ("gpu_energy_joules_total", {}, 1e-3, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
            (
                "gpu_temperature_celsius",
                {},
                1,
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ),
            *(
                ("gpu_clock_hertz", {"type": name}, 1e6, partial(nvml.nvmlDeviceGetClockInfo, handle, clock))
                for name, clock in clocks.items()
            ),
            *(
                ("gpu_ecc_errors_total", {"type": name}, 1, partial(ecc, handle, kind, volatile))
                for name, kind in errors.items()
            ),
            *(
                ("gpu_throttle_active", {"reason": name}, 1, partial(self._throttled, handle, bit))
                for name, bit in reasons.items()
            ),
        ]

    def _throttled(self, handle: Any, bit: int) -> bool:
        return bool(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & bit)

    def _watch_xids(self) -> None:
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            for device in self._devices:
                nvml.nvmlDeviceRegisterEvents(device.handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError as error:
            self._say_once("XID events", error)
            return
        by_uuid = {device.labels["UUID"]: device.labels["gpu"] for device in self._devices}
        while not self._closed.is_set():
            try:
                event = nvml.nvmlEventSetWait_v2(events, _WAIT_MILLISECONDS)
            except nvml.NVMLError_Timeout:
                continue
            except nvml.NVMLError as error:
                self._say_once("XID events", error)
                return
            gpu = by_uuid.get(nvml.nvmlDeviceGetUUID(event.device))
            if gpu is not None:
                self._xids[gpu, str(event.eventData)] += 1

    def _say_once(self, what: str, error: Exception) -> None:
        if what not in self._failed:
            self._failed.add(what)
            logger.warning("no %s: %s", what, error)


def open_gpus() -> GpuSource:
    """NVML where there is a driver."""
    try:
        return Nvml()
    except Exception as error:  # NVML's errors share no base class with a library that is missing
        logger.debug("no GPU metrics: %s", error)
        return NoGpus()
