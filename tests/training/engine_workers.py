"""Work of the ranks in tests of the engine, checkpoints, and process groups; each launch covers many cases."""

import math
import os
import resource
import signal
import socket
import time
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from motionmae.checkpointing import sharded
from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.process_group import init_distributed
from motionmae.distributed.stop_requests import StopRequests, StopSignals
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine, import_deepspeed
from motionmae.engine.precision import LossScale
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.end_reason import EndReason, classify_error
from motionmae.training import nonfinite
from motionmae.training.pretrain import Pretraining
from tests.training.tiny import TinyBlocks, TinyModel, config, micro_batches

Weights = dict[str, torch.Tensor]

SMALLEST_MESSAGE = 100
"""Values; smaller messages are norms and flags."""


def new_engine(settings: Config) -> tuple[Engine, DistributedContext]:
    rank = init_distributed(settings.engine)
    model = TinyBlocks() if settings.optim.name == "muon" else TinyModel()
    return Engine(model, Pretraining(settings).parameter_groups(model), settings, rank), rank


def take_step(
    engine: Engine, settings: Config, rank: DistributedContext, step: int, poison: float | None = None
) -> float:
    """Train on a step's samples and return its loss over all ranks.

    ``poison`` is added to the loss of the last rank's last micro-batch, as a number without a gradient.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.01 * (step + 1)
    total = torch.zeros(())
    for number, inputs in enumerate(micro_batches(step, rank.rank, rank.world, settings.engine.micro_batch_size)):
        loss = engine(*inputs).total
        if poison is not None and rank.rank == rank.world - 1 and number == engine.accumulation - 1:
            loss = loss + poison
        engine.backward(loss)
        engine.step()
        total += loss.detach() / engine.accumulation
    dist.all_reduce(total)
    return total.item() / rank.world


def weights(engine: Engine) -> Weights:
    return {name: sharded_state.read(engine, p, "parameter").clone() for name, p in engine.parameters.items()}


def train_all(cases: list[Config], steps: int) -> list[tuple[list[float], Weights, float]]:
    """Losses, final weights and last gradient norm of each case."""
    results = []
    for settings in cases:
        engine, rank = new_engine(settings)
        losses = [take_step(engine, settings, rank, step) for step in range(steps)]
        results.append((losses, weights(engine), engine.grad_norm))
        engine.close()
    return results


def skip_all(cases: list[Config], poison: float) -> list[dict[str, Any]]:
    """Each case: a good step, a step with a non-finite loss on the last rank, a good step."""
    results = []
    for settings in cases:
        engine, rank = new_engine(settings)
        take_step(engine, settings, rank, 0)
        before = weights(engine)
        loss = take_step(engine, settings, rank, 1, poison)
        local = torch.tensor([poison if rank.rank == rank.world - 1 else 1.0])
        bad = nonfinite.find_cause(engine, local, [torch.tensor([10 * rank.rank]), torch.tensor([10 * rank.rank + 1])])
        after, updates = weights(engine), sharded_state.optimizer_steps(engine)
        take_step(engine, settings, rank, 2)
        results.append(
            {
                "loss": loss,
                "bad": asdict(bad),
                "unchanged": all(torch.equal(before[name], after[name]) for name in before),
                "updates": (updates, sharded_state.optimizer_steps(engine)),
                "finite": all(bool(value.isfinite().all()) for value in weights(engine).values()),
                "weights": weights(engine),
                "scale": engine.loss_scale.value if engine.loss_scale else None,
            }
        )
        engine.close()
    return results


def overflow_fp16(zeros: list[int]) -> list[tuple[list[float], list[bool], float]]:
    """Start at a loss scale far too high; return scales, whether steps were applied, and the last gradient norm."""
    results = []
    for zero in zeros:
        settings = config(zero, precision="fp16")
        engine, rank = new_engine(settings)
        assert engine.loss_scale is not None
        engine.loss_scale.value = 2.0**30
        engine.set_loss_scale()
        scales, applied = [], []
        for step in range(24):
            before = sharded_state.optimizer_steps(engine)
            take_step(engine, settings, rank, step % 3)
            applied.append(sharded_state.optimizer_steps(engine) > before)
            scales.append(engine.loss_scale.value)
        results.append((scales, applied, engine.grad_norm))
        engine.close()
    return results


def flags_of(settings: Config) -> tuple[bool, bool]:
    """Return whether torch refuses operators that are not deterministic, and whether the model is compiled."""
    engine, _ = new_engine(settings)
    try:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
        refuses = False
    except RuntimeError:
        refuses = True
    assert refuses == ("CUBLAS_WORKSPACE_CONFIG" in os.environ)
    return refuses, engine.deepspeed.is_compiled


def train_and_note_messages(cases: list[Config]) -> list[tuple[set[str], float, Weights]]:
    """Each case: two steps; return the number formats of large messages, the gradient norm, and the weights."""
    found: set[torch.dtype] = set()

    def note(name: str) -> None:
        send = getattr(dist, name)

        def send_and_note(*tensors: Any, **options: Any) -> Any:
            sent = [*tensors, *options.values()]
            found.update(x.dtype for x in sent if isinstance(x, torch.Tensor) and x.numel() > SMALLEST_MESSAGE)
            return send(*tensors, **options)

        setattr(dist, name, send_and_note)

    for name in ("all_reduce", "reduce", "reduce_scatter_tensor"):
        note(name)
    results = []
    for settings in cases:
        engine, rank = new_engine(settings)
        found.clear()
        for step in range(2):
            take_step(engine, settings, rank, step)
        results.append(({str(each).removeprefix("torch.") for each in found}, engine.grad_norm, weights(engine)))
        engine.close()
    return results


def operators_probed_on(device: str) -> int:
    """Count the probes of DeepSpeed's compiled operators while it is set up for ``device``."""
    from deepspeed import ops

    probes = []
    ops.__dict__.pop("__compatible_ops__", None)
    ops._probe_compatible_ops = lambda: probes.append("probe") or {}
    import_deepspeed(torch.device(device))
    return len(probes)


def save_all(
    folder: Path, zeros: list[int], steps: int, more: int, optimizer: str = "adamw"
) -> dict[int, tuple[list[float], Weights]]:
    """Each stage: train, save in ``folder/STAGE``, train on; return the losses after the save and the final weights."""
    results = {}
    for zero in zeros:
        settings = config(zero, optimizer=optimizer)
        engine, rank = new_engine(settings)
        for step in range(steps):
            take_step(engine, settings, rank, step)
        taken = sharded.stage(engine, rank, steps, {"trainer": {"data_step": steps}}, sharded.PinnedStagingBuffer())
        later = [take_step(engine, settings, rank, step) for step in range(steps, steps + more)]
        sharded.write(taken, CheckpointStore(folder / str(zero)), rank)  # the weights at the time of the save
        results[zero] = (later, weights(engine))
        engine.close()
    return results


def load_all(
    folder: Path, saved: list[int], zeros: list[int], steps: int, more: int, optimizer: str = "adamw"
) -> dict[tuple[int, int], tuple[list[float], Weights, int]]:
    """Continue every checkpoint of :func:`save_all` at every stage of ``zeros``."""
    results = {}
    for before in saved:
        for zero in zeros:
            settings = config(zero, optimizer=optimizer)
            engine, rank = new_engine(settings)
            found = sharded.find_newest(CheckpointStore(folder / str(before)), rank, print)
            assert found is not None
            sharded.restore(engine, rank, found)
            losses = [take_step(engine, settings, rank, step) for step in range(steps, steps + more)]
            results[before, zero] = (losses, weights(engine), sharded_state.optimizer_steps(engine))
            engine.close()
    return results


def resume_loss_scale(folder: Path, zeros: list[int]) -> list[tuple[LossScale | None, LossScale | None, bool]]:
    """Save in fp16 after two steps, and restore: the scales, and whether the next step is the same."""
    results = []
    for zero in zeros:
        settings = config(zero, precision="fp16")
        engine, rank = new_engine(settings)
        assert engine.loss_scale is not None
        engine.loss_scale.value = 1024.0  # not the one of a new engine
        engine.set_loss_scale()
        for step in range(2):
            take_step(engine, settings, rank, step)
        store = CheckpointStore(folder / str(zero))
        sharded.write(sharded.stage(engine, rank, 2, {}, sharded.PinnedStagingBuffer()), store, rank)
        saved = replace(engine.loss_scale)
        expected = take_step(engine, settings, rank, 2), weights(engine)
        engine.close()
        engine, rank = new_engine(settings)
        found = sharded.find_newest(store, rank, print)
        assert found is not None
        sharded.restore(engine, rank, found)
        restored = replace(engine.loss_scale) if engine.loss_scale else None
        loss, final = take_step(engine, settings, rank, 2), weights(engine)
        is_same = loss == expected[0] and all(torch.equal(final[name], value) for name, value in expected[1].items())
        results.append((saved, restored, is_same))
        engine.close()
    return results


def fail_to_write(folder: Path) -> tuple[str, list[str]]:
    """Save, then save while the last rank cannot write; return the error and the names in the store."""
    settings = config(1)
    engine, rank = new_engine(settings)
    store = CheckpointStore(folder)
    sharded.write(sharded.stage(engine, rank, 1, {}, sharded.PinnedStagingBuffer()), store, rank)
    taken = sharded.stage(engine, rank, 2, {}, sharded.PinnedStagingBuffer())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank.rank == rank.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        sharded.write(taken, store, rank)
        error = ""
    except sharded.CheckpointError as failure:
        error = str(failure)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()  # rank 0 has removed the partial checkpoint
    return error, sorted(path.name for path in folder.iterdir())


def await_signal(pids: Path) -> tuple[str | None, int]:
    """Poll until a rank receives a signal; return the end reason and the rank."""
    settings = config()
    rank = init_distributed(settings.engine)
    former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with StopSignals() as signals:
        assert signals.former[signal.SIGUSR2] is signal.SIG_IGN
        requests = StopRequests(signals, pids, rank.is_rank_zero)

        def sync() -> EndReason | None:
            requests.begin_sync()
            return requests.finish_sync().end

        first = sync()
        (pids / str(rank.rank)).write_text(str(os.getpid()))
        while not (pids / "go").exists():  # all signals of a case have then arrived before the next check
            time.sleep(0.001)
        end = time.monotonic() + 60
        while not (reason := sync()) and time.monotonic() < end:
            time.sleep(0.001)
    back = signal.signal(signal.SIGUSR2, former) is signal.SIG_IGN
    assert first is None
    assert back
    return (reason.name if reason else None), rank.rank


def plain_adamw(steps: int, clip: float) -> tuple[list[float], Weights, float]:
    """The same training in plain torch, without ranks, accumulation or DeepSpeed."""
    from tests.training.tiny import step_inputs

    model = TinyModel()
    exempt = {"rise.bias", "space.bias", "norm.weight", "norm.bias"}
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in parameters.items() if name not in exempt], "weight_decay": 0.1},
        {"params": [p for name, p in parameters.items() if name in exempt], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses, norm = [], math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.zero_grad()
        loss = model(*step_inputs(step)).total
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in parameters.items()}, norm


def lose_peer(how: str) -> EndReason:
    """Lose rank 1 in one of three ways; return the end reason of rank 0's error."""
    rank, timeout = int(os.environ["RANK"]), timedelta(seconds=3)
    if rank == 1 and how == "is not there":
        os._exit(0)
    try:
        dist.init_process_group("gloo", timeout=timeout)
        dist.all_reduce(torch.ones(2))
        if rank == 1 and how == "dies":
            os._exit(9)
        if rank == 1:
            time.sleep(30)
        dist.all_reduce(torch.ones(2))
    except RuntimeError as error:
        return classify_error(error)
    return EndReason.FINISHED


def listening() -> set[str]:
    """Return the IPv4 and IPv6 addresses at which this process listens after a collective."""
    init_distributed(config().engine)
    dist.all_reduce(torch.ones(2))
    links = [Path(f"/proc/self/fd/{number}") for number in range(1024)]
    mine = {path.stat().st_ino for path in links if path.is_symlink()}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and int(inode) in mine:
                words = bytes.fromhex(local.split(":")[0])
                swapped = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.add(socket.inet_ntop(family, swapped))
    dist.barrier()
    return found
