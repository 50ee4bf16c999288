"""The engine against plain torch, on real ranks; a launch covers all ZeRO stages."""

import math
from typing import Any

import pytest
import torch

from motionmae.config import Config
from motionmae.engine.deepspeed_engine import Engine
from motionmae.engine.precision import LossScale, resolve_precision
from tests.training.engine_workers import (
    flags_of,
    new_engine,
    operators_probed_on,
    overflow_fp16,
    plain_adamw,
    skip_all,
    take_step,
    train_all,
    train_and_note_messages,
)
from tests.training.engine_workers import weights as weights_of
from tests.training.launch import run_ranks
from tests.training.tiny import config, micro_batches

STAGES = [0, 1, 2, 3]
CLIP = 0.5


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def average(cases: list[Config]) -> list[dict[str, Any]]:
    """Each case: a good step, a skipped step, a good step, with a moving average of half of each step."""
    results = []
    for settings in cases:
        engine, rank = new_engine(settings)

        def averages(engine: Engine = engine) -> dict[str, torch.Tensor]:
            return {name: value.detach().clone() for name, value in engine.averages.items()}

        found = [(weights_of(engine), averages())]
        for step in range(3):
            take_step(engine, settings, rank, step, poison=math.nan if step == 1 else None)
            found.append((weights_of(engine), averages()))
        modes = [module.training for module in engine.deepspeed.module.modules()]
        with engine.evaluation() as model:
            evaluated = {name: value.detach().clone() for name, value in model.named_parameters()}
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
        assert [module.training for module in engine.deepspeed.module.modules()] == modes
        results.append({"found": found, "evaluated": evaluated, "rate": engine.learning_rate})
        engine.close()
    return results


@pytest.mark.parametrize(("world", "stages"), [(1, [0]), (2, [0, 1, 2])])
def test_a_moving_average_follows_applied_steps_alone_and_is_what_evaluation_uses(world: int, stages: list[int]):
    cases = [config(zero, micro_batch_size=3).updated({"optim.ema_decay": 0.5}) for zero in stages]
    for answers in run_ranks(world, average, cases):
        for case in answers:
            (first, begin), (second, moved), (third, kept), (last, end) = case["found"]
            assert largest_difference(first, begin) == 0
            assert largest_difference(moved, {name: (first[name] + second[name]) / 2 for name in first}) < 1e-6
            assert largest_difference(second, third) == largest_difference(moved, kept) == 0  # skipped
            assert largest_difference(end, {name: (kept[name] + last[name]) / 2 for name in first}) < 1e-6
            assert largest_difference(case["evaluated"], end) == 0
            assert largest_difference(end, last) > 1e-3
            assert case["rate"] == pytest.approx(0.03)


def accumulate(zeros: list[int]) -> list[list[tuple[bool, int]]]:
    """Each stage, with three micro-batches a step: after each, whether the weights changed, and the scale's steps."""
    results = []
    for zero in zeros:
        settings = config(zero, micro_batch_size=4, precision="fp16")
        engine, rank = new_engine(settings)
        found = []
        for inputs in micro_batches(0, rank.rank, rank.world, 4):
            before = weights_of(engine)
            engine.backward(engine(*inputs).total)
            engine.step()
            assert engine.loss_scale is not None
            found.append((any(not torch.equal(v, before[n]) for n, v in weights_of(engine).items()),
                          engine.loss_scale.good_steps))  # fmt: skip
        results.append(found)
        for rates in ((0.5, 0.25), (0.125, 0.25)):  # with layer-wise decay, groups have rates of their own
            for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            assert engine.learning_rate == max(rates)
        module = engine.deepspeed.module
        module.norm.eval()
        with engine.evaluation() as model:
            assert model is module
            assert not any(part.training for part in model.modules())
            assert torch.get_autocast_dtype("cpu") == torch.float16
            assert torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
        assert {name for name, part in module.named_modules() if not part.training} == {"norm"}
        engine.close()
    return results


def test_only_the_last_micro_batch_of_a_step_updates_weights_and_loss_scale():
    """And evaluation leaves the modules in the modes that it found."""
    assert run_ranks(1, accumulate, [0]) == [[[(False, 0), (False, 0), (True, 1)]]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_stage_agrees_with_plain_adamw_with_and_without_clipping(world: int):
    cases = [config(zero, clip=clip) for clip in (0, CLIP) for zero in STAGES]
    answers = run_ranks(world, train_all, cases, 4)
    for settings, (losses, weights, norm) in zip(cases, answers[0], strict=True):
        clip = settings.optim.clip_grad
        expected_losses, expected_weights, expected_norm = plain_adamw(4, clip)
        assert losses == pytest.approx(expected_losses, rel=1e-6)
        assert largest_difference(weights, expected_weights) < 2e-6
        assert norm == pytest.approx(expected_norm, rel=1e-5)  # before clipping
        assert norm > CLIP  # clipping applies
    assert largest_difference(answers[0][0][1], answers[0][4][1]) > 1e-3  # clipping changed the weights
    for other in answers[1:]:
        assert [case[0] for case in other] == [case[0] for case in answers[0]]
        assert all(largest_difference(a[1], b[1]) == 0 for a, b in zip(other, answers[0], strict=True))


@pytest.mark.parametrize(("world", "micro_batches"), [(1, (1, 4, 12)), (2, (1, 3, 6))])
def test_accumulation_keeps_the_batch_and_changes_only_rounding(world: int, micro_batches: tuple[int, ...]):
    cases = [config(zero, micro_batch_size=micro) for zero in STAGES for micro in micro_batches]
    for losses, weights, norm in run_ranks(world, train_all, cases, 3)[0]:
        expected_losses, expected_weights, expected_norm = plain_adamw(3, 0)
        assert losses == pytest.approx(expected_losses, rel=1e-6)
        assert largest_difference(weights, expected_weights) < 2e-6
        assert norm == pytest.approx(expected_norm, rel=1e-5)


def assert_skipped(case: dict[str, Any], world: int) -> None:
    assert not math.isfinite(case["loss"])
    assert case["unchanged"]
    assert case["finite"]
    assert case["updates"] == (1, 2)
    last = world - 1
    assert case["bad"] == {"cause": "loss", "ranks": [last], "samples": [10 * last, 10 * last + 1]}


@pytest.mark.parametrize("poison", [math.inf, math.nan])  # an infinite constant has gradient 0, not NaN
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(poison: float):
    answers = run_ranks(2, skip_all, [config(zero, clip=clip) for clip in (0, CLIP) for zero in STAGES], poison)
    for number, cases in enumerate(zip(*answers, strict=True)):
        for case in cases:
            assert_skipped(case, 2)
        assert largest_difference(cases[0]["weights"], cases[1]["weights"]) == 0
        reference = answers[0][0 if number < 4 else 4]["weights"]
        assert largest_difference(cases[0]["weights"], reference) < 2e-6  # all stages continue alike


def test_lower_precision_is_close_to_fp32_and_different_from_it():
    """One launch per precision: DeepSpeed keeps autocast in a global variable."""
    expected_losses, _, expected_norm = plain_adamw(4, CLIP)
    for precision, tolerance in (("bf16", 2e-2), ("fp16", 3e-3)):
        cases = [config(zero, precision=precision, clip=CLIP) for zero in STAGES]
        for losses, _, norm in run_ranks(2, train_all, cases, 4)[0]:
            assert losses == pytest.approx(expected_losses, rel=tolerance)
            assert losses != pytest.approx(expected_losses, rel=1e-6)
            assert norm == pytest.approx(expected_norm, rel=10 * tolerance)  # unscaled


def test_fp16_finds_its_loss_scale():
    for scales, applied, norm in run_ranks(2, overflow_fp16, STAGES)[0]:
        assert not applied[0]
        assert scales[0] == 2.0**29
        assert all(applied[-5:])
        assert scales[-1] == 2.0 ** (30 - applied.count(False)) < 2.0**24
        assert 0 < norm < 100


def test_deterministic_kernels_and_compilation_are_enabled_in_torch():
    settings = config()
    for deterministic, compiled in ((False, False), (True, False), (False, True)):
        engine = settings.engine.model_copy(update={"deterministic": deterministic, "compile": compiled})
        assert run_ranks(1, flags_of, settings.updated({"engine": engine})) == [(deterministic, compiled)]


def test_overlap_with_the_backward_pass_changes_no_bit():
    cases = [
        config(zero, clip=CLIP, micro_batch_size=micro).updated({"engine.overlap_comm": overlap})
        for zero in (1, 2, 3)
        for micro in (2, 6)
        for overlap in (True, False)
    ]
    found = run_ranks(2, train_and_note_messages, cases)[0]
    for with_overlap, without in zip(found[::2], found[1::2], strict=True):
        assert with_overlap[1] == without[1]
        assert largest_difference(with_overlap[2], without[2]) == 0


def test_gradients_travel_in_the_configured_number_format():
    """One launch per precision: DeepSpeed keeps autocast in a global variable."""
    formats = ("fp32", "bf16")
    for precision in formats:
        cases = [
            config(zero, precision=precision).updated({"engine.reduce_dtype": kind})
            for zero in STAGES
            for kind in formats
        ]
        found = [sent for sent, _, _ in run_ranks(2, train_and_note_messages, cases)[0]]
        assert found[::2] == [{"float32"}] * 4
        assert all("bfloat16" in sent for sent in found[1::2]), found


def test_deepspeed_s_operators_are_probed_on_the_cpu_alone():
    """The probe warns on a GPU without a CUDA toolkit, and takes a second."""
    assert [run_ranks(1, operators_probed_on, device)[0] for device in ("cuda", "cpu")] == [0, 1]


@pytest.mark.long
def test_compiled_training_agrees_with_plain_adamw():
    case = config(1).updated({"engine.compile": True})
    ((losses, weights, _),) = run_ranks(1, train_all, [case], 3)[0]
    expected_losses, expected_weights, _ = plain_adamw(3, 0)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert largest_difference(weights, expected_weights) < 1e-5


def test_loss_scale_grows_after_its_interval_and_stops_at_one():
    scale = LossScale(value=4.0, growth_interval=3)
    for applied in (True, True, False, True, True, True):
        scale.update(applied)
    assert (scale.value, scale.good_steps) == (4.0, 0)
    for _ in range(5):
        scale.update(False)
    assert scale.value == 1.0
    assert scale.exhausted


def test_auto_precision_is_fp32_on_a_cpu():
    cpu = torch.device("cpu")
    assert [resolve_precision(p, cpu) for p in ("auto", "fp32", "bf16", "fp16")] == ["fp32", "fp32", "bf16", "fp16"]


def test_weight_decay_spares_biases_and_norms():
    """Only weight decay differs between the two cases."""
    frozen: Config = config(1)
    frozen = frozen.updated({"optim.weight_decay": 0.9})
    decayed, plain = (run_ranks(1, train_all, [case], 1)[0][0][1] for case in (frozen, config(1)))
    changed = {name for name in decayed if not torch.equal(decayed[name], plain[name])}
    assert changed == {"rise.weight", "space.weight", "time.weight"}
