"""Golden losses of 50 steps on the real engine: a faster training step must not change them.

:mod:`tests.models.test_golden` checks the model alone. Here, ZeRO (on two ranks), schedule, precision, and optimiser
are those of a run. The small learning rate keeps 50 steps of rounding far below the effect of any change of the method.
After an intended change, write the losses again with ``python -m tests.training.test_golden`` and give the reason in
the commit.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from motionmae.config import Config, EngineConfig, OptimConfig
from motionmae.data.loader import Batch
from motionmae.distributed.process_group import init_distributed
from motionmae.engine.deepspeed_engine import Engine
from motionmae.training.pretrain import Pretraining
from motionmae.training.state import build_schedule
from tests.models.tiny import moving_clips, needs_pinned_torch, tiny
from tests.training.launch import run_ranks

STORED = Path(__file__).with_name("golden_losses.json")
STEPS, BATCH = 50, 4
CONFIGS = {
    "motionmae": tiny(mask={"kind": "tube", "ratio": 0.9}),  # the paper's: frame and motion, divided decoders
    "videomae": tiny(mask={"kind": "tube", "ratio": 0.9}, target={"kind": "frame"}),
}


def of_a_run(config: Config) -> Config:
    """Add the optimiser and the engine: two micro-batches a step."""
    optim = OptimConfig(global_batch_size=BATCH, epochs=10, warmup_epochs=2, base_lr=0.2)
    return config.updated(
        {"optim": optim, "engine": EngineConfig(zero_stage=1, micro_batch_size=BATCH // 2, device="cpu")}
    )


def losses(configs: list[Config]) -> list[list[list[float]]]:
    """Train each for :data:`STEPS` steps; return total, space, and time loss of every step."""
    answers = []
    for config in configs:
        task, rank = Pretraining(config), init_distributed(config.engine)
        model = task.build_model(None, None)  # type: ignore[arg-type]  # weights follow from the seed
        engine = Engine(model, task.parameter_groups(model), config, rank)
        schedule = build_schedule(engine.optimizer, config.optim, steps_per_epoch=STEPS // config.optim.epochs)
        clips, numbers = moving_clips(config, BATCH), torch.arange(BATCH)
        rows = []
        for step in range(STEPS):
            schedule.step_update(step)
            row = torch.zeros(3)
            for part in numbers.chunk(engine.accumulation * rank.world)[rank.rank :: rank.world]:
                seeds = part + BATCH * step
                found = task.forward(engine, Batch(clips[part], seeds, seeds, seeds, None))
                engine.backward(found[0])
                engine.step()
                assert engine.applied
                row += torch.stack(tuple(found)).detach() / engine.accumulation
            dist.all_reduce(row)
            rows.append((row / rank.world).tolist())
        engine.close()
        answers.append(rows)
    return answers


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank at stage 0", "two at stage 1"])
def found(request: pytest.FixtureRequest) -> dict[str, list[list[float]]]:
    configs = [of_a_run(config) for config in CONFIGS.values()]
    return dict(zip(CONFIGS, run_ranks(request.param, losses, configs)[0], strict=True))


@needs_pinned_torch
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_the_stored_ones(name: str, found: dict[str, list[list[float]]]):
    stored = json.loads(STORED.read_text())[name]
    for step, (row, expected) in enumerate(zip(found[name], stored, strict=True)):
        assert row == pytest.approx(expected, rel=1e-6 if step < 10 else 1e-5), f"step {step}"


@pytest.mark.parametrize("name", CONFIGS)
def test_stored_losses_fall(name: str):
    stored = json.loads(STORED.read_text())[name]
    for first, last in zip(stored[0], stored[-1], strict=True):
        assert last < 0.9 * first or first == last == 0


if __name__ == "__main__":
    answers = run_ranks(1, losses, [of_a_run(config) for config in CONFIGS.values()])[0]
    rounded = {n: [[float(f"{x:.8g}") for x in row] for row in rows] for n, rows in zip(CONFIGS, answers, strict=True)}
    STORED.write_text(json.dumps(rounded) + "\n")
