"""Metrics of the node's GPUs through NVML. Values that a device does not support are left out."""

import ctypes
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from monitoring.rank_snapshots import Sample
from motionmae.text import get_logger

logger = get_logger(__name__)

_NO_DRIVER = (9, 12)  # NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND
_NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)  # drivers return all ones for an unknown value
_WAIT_MILLISECONDS = 200  # interval at which the XID thread checks whether to end; the trainer waits for the thread
_RETRY_SECONDS = 10.0  # pause of the XID thread after an error
CLOSE_SECONDS = 1.0  # time limit for ending a thread that may hang in the driver


class GpuSource:
    """Source of the metrics in :data:`monitoring.metric_definitions.GPU`. This base class is for nodes without GPUs."""

    def samples(self) -> list[Sample]:
        return []

    def close(self) -> None:
        """Close the driver."""


class Nvml(GpuSource):
    """Source that reads the GPUs through nvidia-ml-py. A thread waits for XID events and counts them.

    A GPU that fails, for example after it has fallen off the bus, gives one warning and does not hide the others.

    Raises:
        Exception: an NVML error, if there is no driver.
    """

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._failed: set[str] = set()
        self._devices: list[tuple[Any, dict[str, str]]] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            with self._warned(f"GPU {index}"):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._devices.append((handle, {"gpu": str(index), "UUID": pynvml.nvmlDeviceGetUUID(handle)}))
        self._readings = _readings(pynvml)
        self._xids: Counter[tuple[str, str]] = Counter()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch_xids, name="xid-events", daemon=True)
        self._watcher.start()

    def samples(self) -> list[Sample]:
        """Return samples of each supported metric of each GPU."""
        found: list[Sample] = []
        for handle, labels in self._devices:
            found += self._values(handle, labels)
            for (uuid, xid), count in list(self._xids.items()):
                if uuid == labels["UUID"]:
                    found.append(("gpu_xid_events_total", {**labels, "xid": xid}, count))
        return found

    def close(self) -> None:
        """End the thread and close the driver. A hanging driver stays open."""
        self._closed.set()
        self._watcher.join(CLOSE_SECONDS)
        if not self._watcher.is_alive():
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _values(self, handle: Any, labels: Mapping[str, str]) -> list[Sample]:
        """Read one GPU. If all readings fail, the GPU is lost, which is one warning."""
        found: list[Sample] = []
        errors: dict[str, Exception] = {}
        for name, more, scale, read in self._readings:
            try:
                value = read(handle)
            except self._nvml.NVMLError as error:
                errors.setdefault(name, error)
                continue
            if value not in _NOT_AVAILABLE:
                found.append((name, {**labels, **more}, value * scale))
        gpu = f"GPU {labels['gpu']}"
        for name, failure in errors.items():
            self._warn_once(f"{name} of {gpu}" if found else gpu, failure)
        return found

    def _watch_xids(self) -> None:
        """Count events until :meth:`close`. After an error, watch the GPUs that still answer."""
        while not self._closed.is_set():
            with self._warned("XID events"):
                events = self._nvml.nvmlEventSetCreate()
                try:
                    if not self._register(events):
                        return
                    self._count_xids(events)
                finally:
                    self._nvml.nvmlEventSetFree(events)
            self._closed.wait(_RETRY_SECONDS)

    def _register(self, events: Any) -> bool:
        """Register all GPUs for XID events; return False if none could be registered."""
        registered = 0
        for handle, labels in self._devices:
            with self._warned(f"XID events of GPU {labels['gpu']}"):
                self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, events)
                registered += 1
        return registered > 0

    def _count_xids(self, events: Any) -> None:
        while not self._closed.is_set():
            with suppress(self._nvml.NVMLError_Timeout):
                event = self._nvml.nvmlEventSetWait_v2(events, _WAIT_MILLISECONDS)
                self._xids[self._uuid_of(event.device), str(event.eventData)] += 1

    def _uuid_of(self, device: Any) -> str:
        """Return the UUID by the address of the handle: a GPU that is lost no longer tells it."""
        known = {_address(handle): labels["UUID"] for handle, labels in self._devices}
        return known.get(_address(device)) or self._nvml.nvmlDeviceGetUUID(device)

    @contextmanager
    def _warned(self, what: str) -> Iterator[None]:
        """Turn an NVML error into one warning about ``what``."""
        try:
            yield
        except self._nvml.NVMLError as error:
            self._warn_once(what, error)

    def _warn_once(self, what: str, error: Exception) -> None:
        if what not in self._failed:
            self._failed.add(what)
            logger.warning("%s is not available: %s", what, error)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _readings(nvml: Any) -> list[tuple[str, dict[str, str], float, Callable[[Any], float]]]:
    """Return the readings of a device as (metric, labels, factor to base units, function of the device's handle)."""
    bits = {  # by reason
        "power_cap": nvml.nvmlClocksThrottleReasonSwPowerCap,
        "hardware": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "thermal_hardware": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "thermal_software": nvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "power_brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
    corrected, uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED

    def is_throttled(bit: int, gpu: Any) -> bool:
        return bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) & bit)

    def ecc_errors(kind: int, gpu: Any) -> int:
        return nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, nvml.NVML_VOLATILE_ECC)

    return [
        ("gpu_utilization_ratio", {}, 0.01, lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        ("gpu_memory_used_bytes", {}, 1, lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
        ("gpu_memory_total_bytes", {}, 1, lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
        ("gpu_power_watts", {}, 1e-3, nvml.nvmlDeviceGetPowerUsage),
        ("gpu_energy_joules_total", {}, 1e-3, nvml.nvmlDeviceGetTotalEnergyConsumption),
        ("gpu_temperature_celsius", {}, 1, lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        ("gpu_clock_hertz", {"type": "sm"}, 1e6, lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        ("gpu_clock_hertz", {"type": "memory"}, 1e6, lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        ("gpu_ecc_errors_total", {"type": "corrected"}, 1, partial(ecc_errors, corrected)),
        ("gpu_ecc_errors_total", {"type": "uncorrected"}, 1, partial(ecc_errors, uncorrected)),
        *(("gpu_throttle_active", {"reason": name}, 1, partial(is_throttled, bit)) for name, bit in bits.items()),
    ]


def open_gpus() -> GpuSource:
    """Return the NVML source, or the base class if there is no driver, or a driver that fails (a warning)."""
    try:
        return Nvml()
    except Exception as error:  # NVML errors and a missing library share no base class
        level = logging.DEBUG if getattr(error, "value", None) in (None, *_NO_DRIVER) else logging.WARNING
        logger.log(level, "no GPU metrics: %s", error)
        return GpuSource()
