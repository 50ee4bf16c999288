"""Metrics of the node's GPUs through NVML. Values that a device does not support are left out."""

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
"""Drivers return all ones for an unknown value."""
_WAIT_MILLISECONDS = 200
"""Interval at which the XID thread checks whether to end. The trainer waits for the thread."""
CLOSE_SECONDS = 1.0
"""Time limit for ending a thread that may hang in the driver."""


class GpuSource(Protocol):
    """Source of GPU metrics."""

    def samples(self) -> list[Sample]:
        """Return samples of the metrics in :data:`monitoring.metric_definitions.GPU` for each GPU."""

    def close(self) -> None:
        """Close the driver."""


class NoGpus:
    """Source for a node without GPUs or without the driver."""

    def samples(self) -> list[Sample]:
        """Return no samples."""
        return []

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Device:
    handle: Any
    labels: dict[str, str]


class Nvml:
    """Source that reads the GPUs through nvidia-ml-py. A thread waits for XID events and counts them.

    Raises:
        Exception: an NVML error, if there is no driver.
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
        """Return samples of each supported metric of each GPU."""
        found: list[Sample] = []
        for device in self._devices:
            for name, more, scale, read in self._readings(device.handle):
                try:
                    value = read()
                except self._nvml.NVMLError as error:
                    self._warn_once(f"{name} of GPU {device.labels['gpu']}", error)
                    continue
                if value not in _NOT_AVAILABLE:
                    found.append((name, {**device.labels, **more}, value * scale))
        for (gpu, xid), count in list(self._xids.items()):
            labels = next(device.labels for device in self._devices if device.labels["gpu"] == gpu)
            found.append(("gpu_xid_events_total", {**labels, "xid": xid}, count))
        return found

    def close(self) -> None:
        """End the thread and close the driver. A hanging driver stays open."""
        self._closed.set()
        self._watcher.join(CLOSE_SECONDS)
        if not self._watcher.is_alive():
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _device(self, index: int) -> _Device:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return _Device(handle, {"gpu": str(index), "UUID": self._nvml.nvmlDeviceGetUUID(handle)})

    def _readings(self, handle: Any) -> list[tuple[str, dict[str, str], float, Callable[[], float]]]:
        """Return the readings as (metric, labels, factor to base units, function)."""
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
            self._warn_once("XID events", error)
            return
        by_uuid = {device.labels["UUID"]: device.labels["gpu"] for device in self._devices}
        while not self._closed.is_set():
            try:
                event = nvml.nvmlEventSetWait_v2(events, _WAIT_MILLISECONDS)
            except nvml.NVMLError_Timeout:
                continue
            except nvml.NVMLError as error:
                self._warn_once("XID events", error)
                return
            gpu = by_uuid.get(nvml.nvmlDeviceGetUUID(event.device))
            if gpu is not None:
                self._xids[gpu, str(event.eventData)] += 1

    def _warn_once(self, what: str, error: Exception) -> None:
        if what not in self._failed:
            self._failed.add(what)
            logger.warning("%s is not available: %s", what, error)


def open_gpus() -> GpuSource:
    """Return the NVML source, or an empty source if there is no driver."""
    try:
        return Nvml()
    except Exception as error:  # NVML errors and a missing library share no base class
        logger.debug("no GPU metrics: %s", error)
        return NoGpus()
