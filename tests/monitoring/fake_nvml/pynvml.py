"""NVML as nvidia-ml-py shows it, of a node with two GPUs: an H100, and an older one that knows neither energy nor ECC.

Put before the real module on the import path. The H100 is throttled by its power cap and reports XID 31 once.
"""

import sys
import threading
import time
from types import SimpleNamespace

NVML_VOLATILE_ECC = 0
NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
nvmlClocksThrottleReasonSwPowerCap = 0x4
nvmlClocksThrottleReasonHwSlowdown = 0x8
nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80
nvmlEventTypeXidCriticalError = 0x8


class NVMLError(Exception):
    pass


class NVMLError_Timeout(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


_UUIDS = ["GPU-aaaa", "GPU-bbbb"]
_xids = [(0, 31)]


def nvmlInit():
    pass


nvmlEventSetCreate = nvmlInit


def nvmlShutdown():
    waiting = any(thread.name in ("sampler", "xid-events") for thread in threading.enumerate())
    print("NVML is left", "in use" if waiting else "in order", file=sys.stderr, flush=True)


def nvmlDeviceGetCount():
    return len(_UUIDS)


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetUUID(handle):
    return _UUIDS[handle]


def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=97, memory=40)


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(used=60 * 2**30, total=80 * 2**30)


def nvmlDeviceGetPowerUsage(handle):
    return 650_500


def nvmlDeviceGetTotalEnergyConsumption(handle):
    return 0xFFFFFFFFFFFFFFFF if handle == 1 else 123_456_000


def nvmlDeviceGetTemperature(handle, sensor):
    return 61


def nvmlDeviceGetClockInfo(handle, clock):
    return {NVML_CLOCK_SM: 1755, NVML_CLOCK_MEM: 2619}[clock]


def nvmlDeviceGetTotalEccErrors(handle, kind, counter):
    if handle == 1:
        raise NVMLError_NotSupported("Not Supported")
    return kind


def nvmlDeviceGetCurrentClocksThrottleReasons(handle):
    return nvmlClocksThrottleReasonSwPowerCap if handle == 0 else 0


def nvmlEventSetFree(events):
    pass


def nvmlDeviceRegisterEvents(handle, kinds, events):
    pass


def nvmlEventSetWait_v2(events, milliseconds):
    if not _xids:
        time.sleep(milliseconds / 1000)
        raise NVMLError_Timeout("Timeout")
    gpu, xid = _xids.pop()
    return SimpleNamespace(device=gpu, eventData=xid)
