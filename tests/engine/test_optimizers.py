"""Optimisers of ZeRO stage 0 in this process against plain torch, and DeepSpeed's configuration key by key."""

import ctypes
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from motionmae.config import Config
from motionmae.engine import deepspeed_engine
from motionmae.engine.deepspeed_engine import (
    GuardedAdamW,
    GuardedMuon,
    build_optimizer,
    deepspeed_config,
    keep_freed_memory,
)
from motionmae.engine.muon import GROUP_KEY, Muon, split_matrices
from tests.training.tiny import TinyBlocks, config, step_inputs


def groups_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "weight_decay": 0.1}]


def train(make: Callable[[torch.nn.Module], torch.optim.Optimizer], steps: int, scale: float = 1.0) -> Any:
    """Train a TinyBlocks; the gradients are ``scale`` times those of the loss."""
    model = TinyBlocks()
    optimizer = make(model)
    if scale != 1.0:
        optimizer.override_loss_scale(scale)  # type: ignore[attr-defined]
    for step in range(steps):
        model.zero_grad()
        (model(*step_inputs(step)).total * scale).backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}, optimizer


def plain(clip: float, steps: int) -> dict[str, torch.Tensor]:
    model = TinyBlocks()
    optimizer = torch.optim.AdamW(groups_of(model), lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    for step in range(steps):
        model.zero_grad()
        model(*step_inputs(step)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_guarded_adamw_takes_the_steps_of_torch_s(clip: float, scale: float):
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "fused": True}
    found, optimizer = train(lambda model: GuardedAdamW(groups_of(model), clip_grad=clip, **options), 3, scale)
    expected = plain(clip, 3)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-6
    assert optimizer.found_inf == 0
    assert 0.05 < float(optimizer._global_grad_norm) < 50  # before clipping, and without the scale


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_guarded_optimiser_skips_a_gradient_that_is_not_finite(kind: str, bad: float):
    settings = config(0, optimizer=kind, clip=1.0)
    model = TinyBlocks()
    optimizer = build_optimizer(model, groups_of(model), settings.optim, 0)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                name: torch.zeros_like(parameter) if name != "step" else torch.zeros(())
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
    for step, is_bad in enumerate((False, True, False)):
        before = [parameter.clone() for parameter in model.parameters()]
        model.zero_grad()
        model(*step_inputs(step)).total.backward()
        if is_bad:
            next(model.parameters()).grad[0, 0] = bad
        optimizer.step()
        assert bool(optimizer.found_inf) is is_bad
        changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert not any(changed) if is_bad else all(changed)
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    assert all(bool(state["exp_avg"].isfinite().all()) for state in optimizer.state.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_optimiser_has_the_settings_of_the_config(stage: int):
    optim = config(clip=0.3).optim.model_copy(
        update={"beta1": 0.85, "beta2": 0.97, "eps": 1e-7, "muon_momentum": 0.9, "clip_grad": 0.3}
    )
    model = TinyBlocks()
    adamw = build_optimizer(model, groups_of(model), optim, stage)
    assert type(adamw) is (torch.optim.AdamW if stage else GuardedAdamW)
    muon = build_optimizer(model, groups_of(model), optim.model_copy(update={"name": "muon"}), stage)
    assert type(muon) is (Muon if stage else GuardedMuon)
    assert muon.momentum == 0.9  # type: ignore[attr-defined]
    assert {group[GROUP_KEY]: len(group["params"]) for group in muon.param_groups} == {True: 3, False: 9}
    for optimizer in (adamw, muon):
        for group in optimizer.param_groups:
            assert group["lr"] == optim.peak_lr
            assert (group["betas"], group["eps"], group["fused"]) == ((0.85, 0.97), 1e-7, True)
            assert group["weight_decay"] == 0.1
        assert stage or optimizer.clip_grad == 0.3  # type: ignore[attr-defined]


def test_matrices_outside_of_blocks_and_vectors_inside_are_not_muon_s():
    model = TinyBlocks()
    groups = split_matrices(model, [{"params": list(model.parameters()), "weight_decay": 0.2, "name": "all"}])
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [(group[GROUP_KEY], group["weight_decay"], group["name"]) for group in groups] == [
        (True, 0.2, "all"),
        (False, 0.2, "all"),
    ]
    assert [names[p] for p in groups[0]["params"]] == ["blocks.0.weight", "blocks.1.weight", "blocks.2.weight"]
    only = [model.blocks[1].weight]
    assert [len(group["params"]) for group in split_matrices(model, [{"params": only}])] == [1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("precision", "reduce", "dtype"),
    [("fp32", "fp32", None), ("bf16", "fp32", "bfloat16"), ("fp16", "bf16", "float16"), ("bf16", "bf16", "bfloat16")],
)
def test_deepspeed_gets_a_value_for_everything_that_matters(stage: int, precision: str, reduce: str, dtype: str | None):
    settings = config(stage, clip=0.7, micro_batch_size=3).updated(
        {"engine.reduce_dtype": reduce, "engine.overlap_comm": stage == 2, "data.repeated_sampling": 4}
    )
    found = deepspeed_config(settings, stage, precision, 2)
    autocast = found.pop("torch_autocast", None)
    assert found == {
        "train_micro_batch_size_per_gpu": 12,  # 3 samples, of each 4 clips
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.7 if stage else 0.0,  # at stage 0 the guard clips
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": found["zero_optimization"]["reduce_bucket_size"],
            "allgather_bucket_size": found["zero_optimization"]["reduce_bucket_size"],
            "stage3_prefetch_bucket_size": found["zero_optimization"]["reduce_bucket_size"],
            "overlap_comm": stage == 2,
        },
        "communication_data_type": reduce,
        "zero_allow_untested_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    assert 1e6 < found["zero_optimization"]["reduce_bucket_size"] < 1e9
    expected: dict[str, Any] = {"enabled": True, "dtype": dtype}
    if reduce == "fp32":
        expected["lower_precision_safe_modules"] = []
    assert autocast == (expected if dtype else None)
    muon: Config = settings.updated({"optim.name": "muon"})
    assert deepspeed_config(muon, stage, precision, 2)["zero_allow_untested_optimizer"] is True


@pytest.mark.parametrize(
    ("variable", "calls"),
    [("", [(-4, 0), (-1, 2**31 - 1)]), ("MALLOC_ARENA_MAX", []), ("GLIBC_TUNABLES", []), ("OLD_MALLOC_X", None)],
)
def test_freed_memory_is_kept_unless_the_user_has_set_the_allocator(
    monkeypatch: pytest.MonkeyPatch, variable: str, calls: list[tuple[int, int]] | None
):
    """M_MMAP_MAX is -4 and M_TRIM_THRESHOLD is -1 in glibc's malloc.h."""
    monkeypatch.setattr("os.environ", {"PATH": "/bin"} | ({variable: "1"} if variable else {}))
    found: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *arguments: found.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert found == ([(-4, 0), (-1, 2**31 - 1)] if calls is None else calls)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # musl
    deepspeed_engine.keep_freed_memory()
