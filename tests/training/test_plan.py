import argparse
import gc
from pathlib import Path

import pytest
import torch

from motionmae.commands import plan as command
from motionmae.config import Config, EngineConfig, load_config
from motionmae.errors import UserError
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import build_motionmae
from motionmae.training.distributed import distributed
from motionmae.training.engine import BUCKET, Engine
from motionmae.training.plan import kept_bytes, make_plan
from motionmae.training.task import decay_groups
from tests.slurm import tiny
from tests.training.launch import run_ranks
from tests.training.shards import make_shards

SMALL = ["model.depth=3", "clip.size=36", "optim.batch=32"]


def _clips(config: Config, number: int) -> torch.Tensor:
    clip = config.clip
    return torch.zeros(number, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)


def _bytes_kept_by_autograd(config: Config, clips: int) -> int:
    model: torch.nn.Module = build_motionmae(config) if config.task == "pretrain" else build_classifier(config, 6)
    lasting = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []  # so that no storage's address is given out twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in lasting:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=config.engine.precision == "bf16"),
    ):
        model(_clips(config, clips), *([torch.arange(clips)] if config.task == "pretrain" else []))
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "full", "every_n"])
@pytest.mark.parametrize(
    "variant", ["model.decoder=divided", "model.decoder=shared", "target.kind=frame", "task=finetune"]
)
def test_kept_bytes_are_what_autograd_keeps(precision: str, checkpointing: str, variant: str) -> None:
    changes = [f"engine.precision={precision}", f"model.activation_checkpointing={checkpointing}", variant]
    config = load_config("demo", [*SMALL, *changes])
    # per clip, by difference: what does not grow with the batch (16-bit copies of weights) is counted elsewhere
    kept = (_bytes_kept_by_autograd(config, 4) - _bytes_kept_by_autograd(config, 2)) / 2
    assert kept_bytes(config) == pytest.approx(kept, rel=0.01)


def _bytes_of_all_tensors() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def _with_stage(stage: int) -> Config:
    changes = [f"engine.zero={stage}", "engine.precision=fp32", "engine.micro_batch=32", "launch.ranks_per_node=1"]
    return load_config("demo", [*SMALL, *changes])


def _bytes_held_before_a_step() -> list[int]:
    """Bytes on one rank when gradients are there and the optimiser's state is, for each ZeRO stage."""
    held = []
    with distributed(EngineConfig()) as rank:
        for config in map(_with_stage, range(4)):
            before = _bytes_of_all_tensors()
            model = build_motionmae(config)
            engine = Engine(model, decay_groups(model, config), config, rank)
            for _ in range(2):  # the first step makes the optimiser's state
                engine.backward(engine(_clips(config, 2), torch.arange(2)).total)
                held_now = _bytes_of_all_tensors() - before
                engine.step()
            held.append(held_now - sum(buffer.nbytes for buffer in model.buffers()))
            engine.close()
            del model, engine
    return held


@pytest.mark.long
def test_state_is_what_deepspeed_holds_before_a_step() -> None:
    (held,) = run_ranks(1, _bytes_held_before_a_step)
    held[3] -= 4 * BUCKET  # the other stages hold a message only while they reduce
    states = [make_plan(_with_stage(stage)).state for stage in range(4)]
    assert held == pytest.approx([state.total - state.buffers for state in states], rel=0.03)


def test_zero_partitions_state_over_the_ranks() -> None:
    def states(ranks: int) -> list[tuple[int, int, int]]:
        plans = [make_plan(load_config("demo", [f"engine.zero={z}", f"launch.nodes={ranks}", *one])) for z in range(4)]
        return [(p.state.parameters, p.state.gradients, p.state.optimizer) for p in plans]

    one = ["launch.ranks_per_node=1", "engine.micro_batch=2"]
    alone, four = states(1), states(4)
    assert four[0] == alone[0]
    assert [round(a / b) for a, b in zip(alone[1], four[1], strict=True)] == [1, 1, 4]
    assert [round(a / b) for a, b in zip(alone[2], four[2], strict=True)] == [1, 4, 4]
    assert [round(a / b) for a, b in zip(alone[3], four[3], strict=True)] == [4, 4, 4]


def test_large_models_agree_with_the_paper() -> None:
    large, huge = (make_plan(load_config(name)) for name in ("vitl_k400", "vith_k400"))
    assert large.encoder_parameters / 1e6 == pytest.approx(305, rel=0.01)
    assert huge.encoder_parameters / 1e6 == pytest.approx(632, rel=0.01)
    assert (large.ranks, large.clips_per_step) == (32, 512)


def test_time_follows_from_the_shards(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    plan = make_plan(load_config("demo", [*tiny.overrides(shards), "data.repeats=2"]))
    assert (plan.videos, plan.steps_per_epoch, plan.clips_per_step) == (16, 2, 16)
    assert plan.clips_per_second(100.0, 0.5) == pytest.approx(2 * 50e12 / plan.flops_per_clip)
    days = plan.gpu_days(100.0, 0.5)
    assert days == pytest.approx(tiny.STEPS * 16 * plan.flops_per_clip / 50e12 / 86_400)
    assert make_plan(load_config("demo", ["data.shards=''"])).gpu_days(100.0, 0.5) is None


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="is not divisible by"):
        make_plan(load_config("vitl_k400", ["launch.nodes=5"]))


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    words = "plan --config vitl_k400 --nodes 8 engine.zero=3 engine.micro_batch=8 --peak-tflops 989 --mfu 0.35"
    arguments = parser.parse_args(words.split())
    assert arguments.run(arguments) == 0
    shown = capsys.readouterr().out
    for text in ("331.7 M", "64 (8 nodes x 8)", "ZeRO stage 3", "at 35% MFU of 989 TFLOP/s", "memory a GPU"):
        assert text in shown
