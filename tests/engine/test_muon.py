"""Muon against plain torch's Muon and AdamW, on real ranks at every ZeRO stage, and its checkpoints."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from motionmae.config import Config
from motionmae.engine import muon
from motionmae.engine.muon import GROUP_KEY, orthogonalise, split_matrices
from motionmae.models.motionmae import build_motionmae, no_decay
from motionmae.training.pretrain import Pretraining
from tests.training.engine_workers import load_all, save_all, skip_all, train_all
from tests.training.launch import run_ranks
from tests.training.tiny import TinyBlocks, config, step_inputs

STAGES = [0, 1, 2, 3]
CLIP = 0.5
ROUNDING = 0.1
"""Share of a tensor's mean movement. torch's iteration is in bfloat16 and ours, on CPUs, in float32. Some weights then
differ by 0.001, where they move by 0.01 and more."""

Weights = dict[str, torch.Tensor]


def plain_muon(steps: int, clip: float) -> tuple[list[float], Weights]:
    """The same training by torch.optim.Muon and torch.optim.AdamW, without ranks or DeepSpeed."""
    model = TinyBlocks()
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if name.startswith("blocks") and name.endswith("weight")]
    first_last = [named[f"{name}.weight"] for name in ("rise", "space", "time")]
    rest = [p for p in named.values() if p.ndim == 1]
    plain = torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": first_last, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(steps):
        for group in plain.param_groups + adamw.param_groups:
            group["lr"] = 0.01 * (step + 1)
        model.zero_grad()
        loss = model(*step_inputs(step)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        plain.step()
        adamw.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in named.items()}


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def relative_difference(found: Weights, expected: Weights) -> float:
    """Return the largest ratio, over the tensors, of the mean difference to the mean movement in the training."""
    start = {name: p.detach() for name, p in TinyBlocks().named_parameters()}
    assert found.keys() == expected.keys() == start.keys()
    distances = ((name, (found[name] - expected[name]).abs().mean()) for name in expected)
    return max(float(distance / (expected[name] - start[name]).abs().mean()) for name, distance in distances)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_stage_agrees_with_plain_torch_with_and_without_clipping(world: int):
    cases = [config(zero, clip=clip, optimizer="muon") for clip in (0, CLIP) for zero in STAGES]
    answers = run_ranks(world, train_all, cases, 4)
    for settings, (losses, weights, _) in zip(cases, answers[0], strict=True):
        expected_losses, expected = plain_muon(4, settings.optim.clip_grad)
        assert losses == pytest.approx(expected_losses, rel=1e-3)
        assert relative_difference(weights, expected) < ROUNDING
    for other in answers[1:]:  # all ranks hold the same weights
        assert all(largest_difference(a[1], b[1]) == 0 for a, b in zip(other, answers[0], strict=True))


def train_in_bfloat16(cases: list[Config], steps: int) -> list[tuple[list[float], Weights, float]]:
    """Train with the number format that torch's Muon has on every device."""
    muon.orthogonalise = partial(orthogonalise, dtype=torch.bfloat16)  # type: ignore[assignment]
    return train_all(cases, steps)


def test_one_rank_without_accumulation_takes_plain_torch_s_steps():
    (answers,) = run_ranks(1, train_in_bfloat16, [config(0, micro_batch_size=12, optimizer="muon")], 4)
    losses, weights, _ = answers[0]
    expected_losses, expected = plain_muon(4, 0)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert largest_difference(weights, expected) < 2e-6


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_step_that_is_not_finite_changes_nothing_on_any_rank(poison: float):
    cases = [config(zero, clip=clip, optimizer="muon") for clip in (0, CLIP) for zero in STAGES]
    for answers in run_ranks(2, skip_all, cases, poison):
        for case in answers:
            assert case["unchanged"]
            assert case["finite"]
            assert case["updates"] == (1, 2)


def test_a_resume_is_bitwise_at_the_same_stage_and_within_rounding_at_others(tmp_path: Path):
    expected = run_ranks(2, save_all, tmp_path, STAGES, 3, 3, "muon")[0]
    for world in (2, 3):
        answers = run_ranks(world, load_all, tmp_path, STAGES, STAGES, 3, 3, "muon")[0]
        assert len(answers) == len(STAGES) ** 2
        for (before, zero), (losses, weights, updates) in answers.items():
            later, final = expected[before]
            if world == 2 and before == zero:
                assert losses == later
                assert largest_difference(weights, final) == 0
            else:
                assert losses == pytest.approx(later, rel=1e-3)
                assert relative_difference(weights, final) < ROUNDING
            assert updates == 6


@pytest.mark.parametrize("shape", [(37, 37), (11, 37), (37, 11)])
def test_the_iteration_is_that_of_torch(shape: tuple[int, int]):
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(shape))
    matrix.grad = torch.randn(shape)
    torch.optim.Muon([matrix], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    expected = -matrix.detach() / math.sqrt(max(1.0, shape[0] / shape[1]))
    assert torch.allclose(orthogonalise(matrix.grad, torch.bfloat16).float(), expected, atol=1e-6)
    on_cpu = orthogonalise(matrix.grad)
    assert on_cpu.dtype == torch.float32
    assert torch.allclose(on_cpu, orthogonalise(matrix.grad, torch.float64).float(), atol=1e-4)
    singular = torch.linalg.svdvals(orthogonalise(matrix.grad).float())
    assert 0.6 < float(singular.min()) < float(singular.max()) < 1.3  # 0.5 to 1.5 according to its authors


def test_matrices_of_blocks_are_muon_s_and_everything_else_adamw_s():
    settings = Config().updated({"model.size": "vit_ti", "model.depth": 2, "optim.name": "muon"})
    model = build_motionmae(settings)
    groups = split_matrices(model, Pretraining(settings).parameter_groups(model))
    names = {p: name for name, p in model.named_parameters()}
    by_muon = {names[p] for group in groups if group[GROUP_KEY] for p in group["params"]}
    kinds = {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    assert by_muon == {name for name in names.values() if "blocks." in name and name.endswith(tuple(kinds))}
    assert len(by_muon) == 4 * (2 + 4 + 4)  # encoder and two decoders
    assert sum(len(group["params"]) for group in groups) == len(names)
    decays = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert all((decays[name] == 0) == (name in no_decay(model)) for name in decays)
