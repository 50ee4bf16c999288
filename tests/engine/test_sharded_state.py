"""Whole tensors of an engine at every ZeRO stage, on one rank and on two; the ranks themselves compare."""

import torch

from motionmae.distributed.context import DistributedContext
from motionmae.distributed.process_group import init_distributed
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine
from motionmae.engine.sharded_state import KINDS
from motionmae.training.pretrain import Pretraining
from tests.training.engine_workers import take_step
from tests.training.launch import run_ranks
from tests.training.tiny import TinyModel, config, step_inputs

STAGES = [0, 1, 2, 3]
SHAPES = {
    "rise.weight": (37, 24), "rise.bias": (37,), "norm.weight": (37,), "norm.bias": (37,), "space.weight": (24, 37),
    "space.bias": (24,), "time.weight": (5, 37),
}  # fmt: skip
RATE = 0.01  # of the first step of take_step


def read(engine: Engine) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (name, kind): sharded_state.read(engine, parameter, kind).clone()
        for name, parameter in engine.parameters.items()
        for kind in KINDS
    }


def check_new(engine: Engine) -> None:
    """A new engine has the model's weights and moments of zeros."""
    assert {name: tuple(sharded_state.shape(p)) for name, p in engine.parameters.items()} == SHAPES
    found, fresh = read(engine), dict(TinyModel().named_parameters())
    for (name, kind), value in found.items():
        assert tuple(value.shape) == SHAPES[name]
        assert torch.equal(value, fresh[name] if kind == "parameter" else torch.zeros(SHAPES[name])), (name, kind)
    assert sharded_state.optimizer_steps(engine) == 0


def check_holders(engine: Engine, world: int) -> int:
    """At ZeRO 3 no rank holds a parameter in full, not even the only one. Return how many this rank holds."""
    held = 0
    for name, parameter in engine.parameters.items():
        whole = sharded_state.is_whole_here(engine, parameter)
        held += whole
        for kind in KINDS:
            value = sharded_state.read(engine, parameter, kind)  # all ranks take part
            if whole:
                assert torch.equal(sharded_state.read_here(engine, parameter, kind), value), (name, kind)
            elif engine.stage == 3 and world == 1:
                fragment = sharded_state.read_fragment(parameter, kind)
                assert torch.equal(fragment.flatten()[: value.numel()], value.flatten()), (name, kind)
    return held


def check_set(engine: Engine, rank: DistributedContext) -> None:
    """AdamW's step worked by hand. Its moments, its count of steps and its master weights are those that were set."""
    generator = torch.Generator().manual_seed(0)
    values = {
        name: {kind: torch.rand(shape, generator=generator) * 0.2 + 0.1 for kind in KINDS}
        for name, shape in SHAPES.items()
    }
    for each in values.values():
        each["parameter"] -= 0.2  # on both sides of zero
    for name, parameter in engine.parameters.items():
        sharded_state.set_full_state(engine, parameter, values[name])
    sharded_state.set_optimizer_steps(engine, 6)
    assert sharded_state.optimizer_steps(engine) == 6
    for (name, kind), value in read(engine).items():
        assert torch.equal(value, values[name][kind]), (name, kind)

    plain = TinyModel()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(values[name]["parameter"])
    plain(*step_inputs(0)).total.backward()
    take_step(engine, config(engine.stage), rank, 0)
    assert sharded_state.optimizer_steps(engine) == 7
    found = read(engine)
    for name, parameter in plain.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        first = 0.9 * values[name]["exp_avg"] + 0.1 * gradient
        second = 0.95 * values[name]["exp_avg_sq"] + 0.05 * gradient**2
        decay = 0.1 if parameter.ndim > 1 else 0.0
        step = (first / (1 - 0.9**7)) / ((second / (1 - 0.95**7)).sqrt() + 1e-8)
        expected = values[name]["parameter"] * (1 - RATE * decay) - RATE * step
        for kind, value in zip(KINDS, (expected, first, second), strict=True):
            torch.testing.assert_close(found[name, kind], value, atol=1e-5, rtol=1e-5)


def check_skipped(engine: Engine, rank: DistributedContext) -> None:
    """A skipped step counts as no update."""
    before = read(engine)
    take_step(engine, config(engine.stage), rank, 1, poison=float("nan"))
    assert not engine.applied
    assert sharded_state.optimizer_steps(engine) == 7
    assert all(torch.equal(value, before[key]) for key, value in read(engine).items())


def check_stages() -> list[int]:
    """Check each stage; return the number of parameters that this rank holds in full."""
    held = []
    for stage in STAGES:
        settings, model = config(stage), TinyModel()
        rank = init_distributed(settings.engine)
        engine = Engine(model, Pretraining(settings).parameter_groups(model), settings, rank, stage=stage)
        check_new(engine)
        held.append(check_holders(engine, rank.world))
        check_set(engine, rank)
        check_skipped(engine, rank)
        engine.close()
    return held


def test_one_rank_reads_and_sets_whole_tensors_at_every_stage():
    assert run_ranks(1, check_stages) == [[7, 7, 7, 0]]


def test_two_ranks_do_so_too():
    """At ZeRO 1 and 2 they share the parameters, of which some are split between them."""
    first, second = run_ranks(2, check_stages)
    assert first[::3] == second[::3] == [7, 0]
    assert 0 < first[1] + second[1] <= 7
    assert first[1:3] == [first[1]] * 2
