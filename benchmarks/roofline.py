"""Time of a pre-training step on a GPU by roofline, from operators that are traced and not computed.

    python -m benchmarks.roofline --config vitl_k400 --micro-batch 16
    python -m benchmarks.roofline --config vitb_k400 --gpu h100-80 --json roofline.json

Nothing here is measured on a GPU. A step of the real model runs under torch's FakeTensorMode, which shows every
operator with its shapes and computes nothing. An operator takes the longer of two times: that of its operations at the
rate of its kind, and that of its bytes at the rate of the memory. "Fused" joins neighbouring pointwise operators and
norms, as torch.compile does at best: a group reads its inputs once, and writes only what others read. The host issues
the kernels meanwhile. The longer of the two times is that of the step.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.script import build_parser, run_script, write_json
from motionmae.config import Config, load_config
from motionmae.errors import UserError
from motionmae.models import vit
from motionmae.models.motionmae import MotionMAE
from motionmae.planning.flops import step_flops
from motionmae.planning.gpus import GPUS, Gpu, find_gpu
from motionmae.planning.memory import trained_parameters
from motionmae.screen import Table, show

CARDS = ("a100-80", "h100-80", "h200-141", "b200-180", "a5000-24", "rtx4090-24")
PRODUCTS, ATTENTION, MEMORY = 0.7, 0.45, 0.8
"""Assumed shares of the data sheet's rates: matrix products and attention of their peak, memory of its bandwidth."""
HOST_SECONDS = 10e-6
"""Assumed time in which the host issues a kernel in eager mode, with autograd and autocast."""
_FREE = {"view", "expand", "transpose", "permute", "t", "slice", "split", "unsqueeze", "alias", "detach", "select"}
_FREE |= {"as_strided", "unbind", "squeeze", "_unsafe_view", "empty", "empty_like", "new_empty", "split_with_sizes"}
_FREE |= {"unfold", "diagonal", "empty_strided", "lift_fresh", "new_empty_strided", "device"}
"""Operators without a kernel."""
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


@dataclass
class Operator:
    """A kernel: its kind (``product``, ``attention`` or ``pointwise``), work, and the storages that it touches."""

    name: str
    kind: str
    flops: int
    reads: dict[int, int]  # bytes by storage
    writes: dict[int, int]

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())


class Trace(TorchDispatchMode):
    """Dispatch mode that notes every operator with a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._alive: list[torch.UntypedStorage] = []  # the address of a storage is not used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name not in _FREE:
            reads, writes = self._bytes((args, kwargs)), self._bytes(result)
            kind = "attention" if "attention" in name else "product" if name in _PRODUCTS else "pointwise"
            self.operators.append(Operator(name, kind, _flops(func, name, args, result), reads, writes))
        return result

    def _bytes(self, tensors: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive.append(storage)
                size = min(tensor.numel() * tensor.element_size(), storage.nbytes())
                found[storage._cdata] = max(found.get(storage._cdata, 0), size)
        return found


def _flops(func: Any, name: str, args: Any, result: Any) -> int:
    """Count operations; a multiply-addition counts as two. torch's formulas do not know attention on a CPU."""
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return _attention_flops(args[0], args[1])
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return _attention_flops(args[1], args[2]) * 5 // 2  # five products in place of two
    return int(flop_registry[func._overloadpacket](*args, out_val=result)) if name in _PRODUCTS else 0


def _attention_flops(q: Tensor, k: Tensor) -> int:
    return 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]


@dataclass(frozen=True)
class Roofline:
    """Estimate of a micro-batch with an optimiser step on one GPU. Times are in seconds."""

    products: float
    attention: float
    pointwise: float  # each operator by itself
    fused: float  # neighbouring pointwise operators fused
    optimizer: float
    kernels: int
    fused_kernels: int
    flops: int  # model FLOPs
    clips: int
    peak: float  # FLOP/s of the GPU

    @property
    def host(self) -> float:
        """Time in which the host issues all kernels in eager mode."""
        return self.kernels * HOST_SECONDS

    def seconds(self, compiled: bool) -> float:
        """Return the longer of the device's and the host's time. Compiled code is assumed to spare two thirds of it."""
        if compiled:
            device, host = self.fused, self.fused_kernels * HOST_SECONDS / 3
        else:
            device, host = self.pointwise, self.host
        return max(self.products + self.attention + device + self.optimizer, host)

    def mfu(self, compiled: bool) -> float:
        return self.flops / self.seconds(compiled) / self.peak


def trace_step(config: Config, clips: int) -> list[Operator]:
    """Return the operators of a forward and backward pass of ``clips`` clips in bfloat16, with fused attention."""
    clip = config.clip
    with torch.device("meta"):
        model = MotionMAE(config)
    with FakeTensorMode(allow_non_fake_inputs=True), patch.object(vit, "attend", scaled_dot_product_attention):
        model = model.to_empty(device="cpu")
        pixels = torch.empty(clips, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
        with Trace() as trace:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(pixels, torch.arange(clips)).total
            loss.backward()
    return trace.operators


def fused_bytes(operators: list[Operator]) -> tuple[int, int]:
    """Return bytes and number of the kernels that remain when neighbouring pointwise operators are fused.

    Operators between two products are fused if one reads what another writes.
    """
    groups: list[list[Operator]] = []
    writer: dict[int, list[Operator]] = {}  # group that writes a storage since the last product
    for operator in operators:
        if operator.kind != "pointwise":
            writer = {}
            continue
        group = [operator]
        for storage in operator.reads:
            other = writer.get(storage)
            if other is not None and other is not group:
                group += other
                groups.remove(other)
                writer.update({written: group for member in other for written in member.writes})
        writer.update(dict.fromkeys(operator.writes, group))
        groups.append(group)
    readers: dict[int, set[int]] = {}
    for operator in operators:
        for storage in operator.reads:
            readers.setdefault(storage, set()).add(id(operator))
    return sum(_bytes_outside(group, readers) for group in groups), len(groups)


def _bytes_outside(group: list[Operator], readers: dict[int, set[int]]) -> int:
    """Count the bytes that a group reads from others, and those that it writes for others or as a result."""
    members = {id(operator) for operator in group}
    written = {storage: size for operator in group for storage, size in operator.writes.items()}
    read = {storage: size for operator in group for storage, size in operator.reads.items()}
    inputs = sum(size for storage, size in read.items() if storage not in written)
    return inputs + sum(size for storage, size in written.items() if readers.get(storage, {0}) - members)


def estimate(config: Config, clips: int, gpu: Gpu, operators: list[Operator], ranks: int = 32) -> Roofline:
    """Estimate a micro-batch, with its optimiser step at ZeRO 1 over ``ranks``."""
    peak, bandwidth = gpu.tflops * 1e12, gpu.bandwidth * 1e9 * MEMORY
    seconds = dict.fromkeys(("product", "attention", "pointwise"), 0.0)
    for operator in operators:
        rate = peak * (ATTENTION if operator.kind == "attention" else PRODUCTS)
        seconds[operator.kind] += max(operator.flops / rate, operator.moved / bandwidth)
    moved, groups = fused_bytes(operators)
    others = sum(operator.kind != "pointwise" for operator in operators)
    state = (28 / ranks + 8) * trained_parameters(config).total / bandwidth  # AdamW's share, buckets, gathered weights
    return Roofline(
        products=seconds["product"],
        attention=seconds["attention"],
        pointwise=seconds["pointwise"],
        fused=moved / bandwidth,
        optimizer=state,
        kernels=len(operators),
        fused_kernels=groups + others,
        flops=step_flops(config).model * clips,
        clips=clips,
        peak=peak,
    )


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--config", default="vitl_k400", help="config of a pre-training (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=16, help="clips of a micro-batch (default: %(default)s)")
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=CARDS, metavar="GPU", help="cards (default: six)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    if config.task != "pretrain" or options.micro_batch < 1:
        raise UserError("--config must be a pre-training and --micro-batch at least 1")
    operators = trace_step(config, options.micro_batch)
    found = {name: estimate(config, options.micro_batch, find_gpu(name), operators) for name in options.gpu}
    _print(config.name, found)
    write_json(options.json, {name: asdict(times) for name, times in found.items()})


def _print(name: str, found: dict[str, Roofline]) -> None:
    any_one = next(iter(found.values()))
    kernels = f"{any_one.kernels} kernels eager, {any_one.fused_kernels} fused"
    title = f"{name}, {any_one.clips} clips, {any_one.flops / 1e12:.1f} TFLOP, {kernels}; ms, estimated, not measured"
    table = Table(title=title, title_justify="left")
    for column in ("", *found):
        table.add_column(column, justify="right" if column else "left")
    for part in ("products", "attention", "pointwise", "fused", "optimizer", "host"):
        table.add_row(part, *(f"{1e3 * getattr(times, part):.1f}" for times in found.values()))
    for mode, compiled in (("eager", False), ("compiled", True)):
        table.add_section()
        seconds = [times.seconds(compiled) for times in found.values()]
        table.add_row(mode, *(f"{1e3 * value:.0f}" for value in seconds))
        table.add_row("clips/s", *(f"{any_one.clips / value:.0f}" for value in seconds))
        table.add_row("MFU", *(f"{times.mfu(compiled):.2f}" for times in found.values()))
    show(table, wrap=False)


if __name__ == "__main__":
    run_script(main)
