"""Memory of a training step: measurement and prediction of `motionmae plan`.

Examples:
  python -m benchmarks.memory                                     # ViT-S, 12 cases on 1 and on 2 processes
  python -m benchmarks.memory --ranks 1 --stages 1 --config vitb_k400 engine.micro_batch_size=2 --json memory.json

Each case is a real DeepSpeed step on the CPU with random pixels, for one ZeRO stage and activation checkpointing mode.
A dispatch mode follows every tensor that torch allocates and frees; the table shows the maximum over all ranks. RSS is
the peak of the process in another step without the dispatch mode, minus its size before the model was built. It
includes workspaces of kernels and the slack of the allocator. Prediction and peak count live tensors only.
"""

import gc
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.script import build_parser, run_ranks, run_script, write_json
from motionmae.config import Config, load_config
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.process_group import distributed
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine
from motionmae.files import output_file
from motionmae.models.motionmae import build_motionmae
from motionmae.planning.memory import predict_memory
from motionmae.training.pretrain import Pretraining

MODES = ("none", "every_n", "full")
SMALL = ["model.size=vit_s", "clip.size=112", "engine.micro_batch_size=8", "engine.precision=fp32"]
"""Default overrides, with which a step takes a second on one core, and activations are as large as states."""
_MB = 1e6


class LiveTensors(TorchDispatchMode):
    """Dispatch mode that counts the bytes of all live storages that operations have allocated under it."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and record new storages."""
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = (storage.nbytes(), weakref.ref(storage, lambda _: self._forget(key)))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)[0]

    def during(self, action: Callable[[], Any]) -> int:
        """Run ``action`` and return the peak of live bytes."""
        self.peak = self.now
        action()
        return self.peak


@dataclass(frozen=True)
class Measured:
    """Bytes of live tensors on this rank in a step after the first."""

    parameters: int
    optimizer: int  # AdamW's moments and DeepSpeed's copy of the parameters
    state: int  # everything that stays between steps: parameters, optimizer, tables, and communication buffers
    activations: int  # saved by the forward pass for the backward pass, including 16-bit copies of weights
    gradients: int  # left by the backward pass for the optimizer
    forward_peak: int
    backward_peak: int
    step_peak: int
    rss_peak: int  # peak RSS of the process minus its size before the model was built

    @property
    def peak(self) -> int:
        """Peak of the whole step."""
        return max(self.forward_peak, self.backward_peak, self.step_peak)


def measure(config: Config, rank: DistributedContext) -> Measured:
    """Take two steps under :class:`LiveTensors`, and a third for RSS. All ranks must call this."""
    gc.collect()
    rss_before = resident()
    clip, number = config.clip, config.engine.micro_batch_size * config.data.repeated_sampling
    with LiveTensors() as live:
        model = build_motionmae(config)
        engine = Engine(model, Pretraining(config).parameter_groups(model), config, rank)
        assert engine.accumulation == 1, "a step of one micro-batch is what is measured"
        clips = torch.zeros(number, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
        seeds, losses = torch.arange(number), []

        def forward() -> None:
            losses.append(engine(clips, seeds).total)

        def backward() -> None:
            engine.backward(losses.pop())

        for _ in range(2):  # DeepSpeed completes buckets and traces in the first step
            gc.collect()
            before = live.now
            forward_peak = live.during(forward)
            activations = live.now - before
            backward_peak = live.during(backward)
            gradients = live.now - before
            step_peak = live.during(engine.step)
    parameters = storages(getattr(p, "ds_tensor", p) for p in engine.parameters.values())
    states = sharded_state.engine_states(engine)
    optimizer = storages([*states, *(value for state in states.values() for value in state.values())])
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    forward()
    backward()
    engine.step()
    measured = Measured(
        parameters=sum(parameters.values()),
        optimizer=sum(size for address, size in optimizer.items() if address not in parameters),
        state=before,
        activations=activations,
        gradients=gradients,
        forward_peak=forward_peak,
        backward_peak=backward_peak,
        step_peak=step_peak,
        rss_peak=resident("VmHWM") - rss_before,
    )
    engine.close()
    return measured


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Map the address of each distinct storage of ``tensors`` to its bytes."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def resident(kind: str = "VmRSS") -> int:
    """Return the resident bytes of this process: current (VmRSS) or peak (VmHWM)."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def with_case(config: Config, ranks: int, stage: int, mode: str) -> Config:
    """Return the config for a step of one micro-batch on ``ranks`` processes of this machine."""
    return config.updated(
        {
            "engine.zero_stage": stage,
            "optim.global_batch_size": config.engine.micro_batch_size * ranks,
            "model.activation_checkpointing": mode,
            "launch.nodes": 1,
            "launch.ntasks_per_node": ranks,
            "launch.gpus_per_node": 0,
        }
    )


def measure_cases(config: Config, stages: Iterable[int], modes: Iterable[str]) -> list[dict[str, Any]]:
    """Measure every case; each value is the maximum over all ranks. All ranks must call this.

    Stage 3 comes last, because DeepSpeed then replaces torch's linear layer for the rest of the process.
    """
    rows = []
    with distributed(config.engine) as rank:
        for stage in sorted(stages):
            for mode in modes:
                case = with_case(config, rank.world, stage, mode)
                everyone = gather_objects(measure(case, rank))
                highest = Measured(*(max(values) for values in zip(*map(astuple, everyone), strict=True)))
                predicted = predict_memory(case, rank.world)
                rows.append(
                    {
                        "ranks": rank.world,
                        "stage": stage,
                        "mode": mode,
                        "measured": asdict(highest) | {"peak": highest.peak},
                        "predicted": asdict(predicted),
                    }
                )
    return rows


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left", caption="MB; the optimiser's with DeepSpeed's copy of the weights")
    for column in ("ranks", "ZeRO", "checkpointing", "parameters", "optimiser", "gradients", "activations"):
        table.add_column(column)
    for column in ("peak", "predicted", "error", "peak RSS"):
        table.add_column(column, style="bold" if column == "peak" else "")
    for row in rows:
        measured, predicted = row["measured"], row["predicted"]
        sizes = [measured[key] for key in ("parameters", "optimizer", "gradients", "activations", "peak")]
        table.add_row(
            *(str(row[key]) for key in ("ranks", "stage", "mode")),
            *(f"{size / _MB:.0f}" for size in sizes),
            f"{predicted['peak'] / _MB:.0f}",
            f"{predicted['peak'] / measured['peak'] - 1:+.1%}",
            f"{measured['rss_peak'] / _MB:.0f}",
        )
    Console().print(table)


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--config", default="vitb_k400", help="config of model and clip (default: a small vitb_k400)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes (default: 1 2)")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], help="ZeRO stages (default: all)")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, help="checkpointing (default: all)")
    parser.add_argument("--json", type=output_file, help="file for the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes to the config ({' '.join(SMALL)})")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides or SMALL)
    if "RANK" in os.environ:  # a process started below
        rows = measure_cases(config, arguments.stages, arguments.modes)
        if os.environ["RANK"] == "0":
            write_json(arguments.json, rows)
        return
    rows = []
    for ranks in arguments.ranks:
        rows += run_ranks(ranks, sys.argv[1:])
    show(rows, f"{config.name}: {config.model.size}, micro batch {config.engine.micro_batch_size}")
    write_json(arguments.json, rows)


if __name__ == "__main__":
    run_script(main)
