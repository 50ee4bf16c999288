"""What ranks do in test_engine.py and test_checkpoint.py; each launch covers many cases."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from motionmae.config import Config
from motionmae.training import checkpoint, zero_state
from motionmae.training.checkpoint_store import CheckpointStore
from motionmae.training.distributed import Rank, init_distributed
from motionmae.training.engine import Engine
from tests.training.tiny import TinyModel, config, micro_batches


def new_engine(settings: Config, rank: Rank) -> Engine:
    engine = Engine(TinyModel(), settings, rank)
    zero_state.create_states(engine)
    return engine


def take_steps(engine: Engine, settings: Config, rank: Rank, steps: range) -> list[float]:
    """Train on the steps' samples; returns each step's loss over all ranks."""
    losses = []
    for step in steps:
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        total = torch.zeros(())
        for inputs in micro_batches(step, rank.rank, rank.world, settings.engine.micro_batch):
            loss = engine(*inputs).total
            engine.backward(loss)
            engine.step()
            total += loss.detach() / engine.accumulation
        dist.all_reduce(total)
        losses.append(total.item() / rank.world)
    return losses


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: zero_state.read(engine, p, "parameter").clone() for name, p in engine.parameters.items()}


def train_all(cases: list[Config], steps: int) -> list[tuple[list[float], dict[str, torch.Tensor], float]]:
    """Losses, final weights and last gradient norm of each case."""
    results = []
    for settings in cases:
        rank = init_distributed(settings.engine)
        engine = new_engine(settings, rank)
        losses = take_steps(engine, settings, rank, range(steps))
        results.append((losses, weights(engine), engine.grad_norm))
        engine.close()
    return results


def save_all(folder: Path, zeros: list[int], steps: int, more: int) -> dict[int, tuple[list[float], dict[str, Any]]]:
    """For each stage train, save below ``folder/STAGE``, train on; the losses after the save and the final weights."""
    results = {}
    for zero in zeros:
        settings = config(zero)
        rank = init_distributed(settings.engine)
        engine = new_engine(settings, rank)
        take_steps(engine, settings, rank, range(steps))
        taken = checkpoint.snapshot(engine, rank, steps, {"trainer": "none"})
        checkpoint.write(taken, CheckpointStore(folder / str(zero)), rank)
        results[zero] = (take_steps(engine, settings, rank, range(steps, steps + more)), weights(engine))
        engine.close()
    return results


def load_all(
    folder: Path, saved: list[int], zeros: list[int], steps: int, more: int
) -> dict[tuple[int, int], tuple[list[float], dict[str, Any]]]:
    """Continue every checkpoint of :func:`save_all` at every stage of ``zeros``."""
    results = {}
    for before in saved:
        for zero in zeros:
            settings = config(zero)
            rank = init_distributed(settings.engine)
            engine = new_engine(settings, rank)
            found = checkpoint.find(CheckpointStore(folder / str(before)), rank, lambda path, reason: None)
            assert found is not None
            checkpoint.restore(engine, rank, found)
            losses = take_steps(engine, settings, rank, range(steps, steps + more))
            results[before, zero] = (losses, weights(engine))
            engine.close()
    return results
