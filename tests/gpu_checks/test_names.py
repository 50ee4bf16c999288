"""Every name of torch, DeepSpeed and NVML that the checks use exists in the installed versions.

Most of this code runs only on a GPU, and a wrong name would show only there.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent, Interval

import motionmae.gpu_checks

SOURCES = sorted(Path(motionmae.gpu_checks.__file__).parent.rglob("*.py"))
ROOTS = {"torch": torch, "dist": torch.distributed, "pynvml": pynvml}


def chains(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Attributes that follow one of ROOTS: `torch.cuda.synchronize` is ("torch", ["cuda", "synchronize"])."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if names and isinstance(node, ast.Name) and node.id in ROOTS:
            yield node.id, names[::-1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_names_of_torch_and_nvml_exist(path: Path) -> None:
    for root, names in chains(path):
        value = ROOTS[root]
        for name in names:
            assert hasattr(value, name), f"{root}.{'.'.join(names)}"
            value = getattr(value, name)


def test_the_search_finds_names_and_would_find_a_wrong_one() -> None:
    found = {".".join(names) for path in SOURCES for _, names in chains(path)}
    assert {"cuda.set_sync_debug_mode", "backends.cudnn.version", "cuda.nccl.version", "cuda.mem_get_info"} <= found
    assert not hasattr(torch.cuda, "no_such_name")


def test_attributes_of_the_profiler_s_events_and_of_a_device_exist() -> None:
    event = FunctionEvent(id=0, name="kernel", thread=0, start_us=2, end_us=5)
    assert {"name", "device_type", "is_user_annotation", "time_range"} <= vars(event).keys()
    assert isinstance(event.time_range, Interval)
    assert {"start", "end"} <= vars(event.time_range).keys()
    for name in ("total_memory", "multi_processor_count", "uuid"):
        assert hasattr(torch.cuda._CudaDeviceProperties, name), name


def test_keyword_arguments_of_cuda_functions_exist() -> None:
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters
    assert "debug_mode" in inspect.signature(torch.cuda.set_sync_debug_mode).parameters
    assert "activities" in inspect.signature(torch.profiler.profile).parameters
    for member in ("MATH", "FLASH_ATTENTION", "CUDNN_ATTENTION"):
        assert hasattr(torch.nn.attention.SDPBackend, member)


def test_deepspeed_has_the_calls_that_the_check_of_host_waits_counts() -> None:
    module = importlib.import_module("deepspeed.accelerator.cuda_accelerator")
    source = inspect.getsource(module.CUDA_Accelerator.synchronize)
    assert "torch.cuda.synchronize(device_index)" in source
