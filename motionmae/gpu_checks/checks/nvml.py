"""Check of the exporter's GPU metrics (NVML) against torch's view of the same GPU."""

import urllib.request
from contextlib import closing, suppress

import torch
from prometheus_client.parser import text_string_to_metric_families

from monitoring.collector import NodeCollector
from monitoring.exporter import listen
from monitoring.gpu import open_gpus
from motionmae.config import MonitoringConfig
from motionmae.gpu_checks.check import CheckError, Figures, NotRunError, Setting, require
from motionmae.planning.gpus import is_slice

NAMES = ("gpu_utilization_ratio", "gpu_memory_used_bytes", "gpu_memory_total_bytes", "gpu_power_watts")
"""Metrics that every NVIDIA GPU of a cluster has."""
_ALLOCATED = 1 << 30  # bytes
_TOLERANCE = 0.1
_SLACK = 2 << 30  # bytes that the driver reserves, which NVML counts and CUDA does not


def check_nvml(setting: Setting) -> Figures:
    """Scrape the exporter before and after an allocation of 1 GiB."""
    if is_slice(torch.cuda.get_device_name(0)):
        raise NotRunError("the exporter has metrics of whole GPUs, and this is a slice of one (MIG)")
    torch.cuda.empty_cache()  # the block must not come from memory that torch holds already
    before = scrape(setting)
    block = torch.empty(_ALLOCATED, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    after = scrape(setting)
    free, total = torch.cuda.mem_get_info()
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    figures: Figures = {"uuid": uuid, "uuids": sorted(after), "torch_used_gb": (total - free) / 1e9}
    del block
    known = next((name for name in after if uuid in name), None)
    if known is None:
        raise CheckError(f"NVML does not know the GPU {uuid} that torch uses", figures)
    figures["metrics"] = metrics = after[known]
    missing = [name for name in NAMES if name not in metrics]
    require(not missing, f"the exporter has no {', '.join(missing)}", figures)
    used, seen = total - free, metrics["gpu_memory_used_bytes"]
    close = abs(seen - used) < _TOLERANCE * used + _SLACK
    require(close, f"the exporter says {seen / 1e9:.2f} GB are used, torch {used / 1e9:.2f} GB", figures)
    grown = seen - before.get(known, {}).get("gpu_memory_used_bytes", 0.0)
    require(grown > _ALLOCATED / 2, f"after an allocation of 1 GiB the exporter saw {grown / 1e9:.2f} GB more", figures)
    return figures


def scrape(setting: Setting) -> dict[str, dict[str, float]]:
    """Serve the metrics of this node once, read them as Prometheus does, and return those of each GPU, by UUID."""
    folder = setting.folder / "nvml"
    folder.mkdir(exist_ok=True)
    with closing(NodeCollector(folder, open_gpus(), folder, with_goodput=False)) as collector:
        collector.refresh()
        stop, address = listen(MonitoringConfig(), collector)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the proxy of a cluster is elsewhere
        try:
            with direct.open(f"http://{address}/metrics", timeout=20) as answer:
                text = answer.read().decode()
        finally:
            with suppress(OSError):
                stop()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if uuid := sample.labels.get("UUID"):
                name = sample.name.removeprefix("motionmae_")
                found.setdefault(uuid, {})[name] = sample.value
    return found
