"""Number formats on devices, and the loss scale against torch's GradScaler."""

import pytest
import torch

from motionmae.engine.precision import LossScale, autocast, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_on_a_gpu_with_units_for_it(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str):
    asked: list[bool] = []

    def is_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert resolve_precision("auto", torch.device("cuda")) == expected
    assert asked == [False]  # emulated bf16 is slower than fp32
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None), ("auto", None)]
)
def test_a_forward_pass_has_the_precision(precision: str, dtype: torch.dtype | None):
    layer = torch.nn.Linear(2, 2)
    with autocast(precision, CPU):
        assert layer(torch.ones(1, 2)).dtype == (dtype or torch.float32)
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)


def test_the_loss_scale_begins_as_that_of_torch():
    scaler = torch.amp.GradScaler("cpu")
    ours = LossScale()
    assert (ours.value, ours.growth_interval) == (scaler.get_scale() or 65536.0, scaler.get_growth_interval())
    assert (ours.value, ours.good_steps, ours.growth_interval) == (65536.0, 0, 2000)


def test_the_loss_scale_follows_torch_s_update():
    ours = LossScale(value=64.0, growth_interval=3)
    scale, growth = torch.tensor([64.0]), torch.tensor([0], dtype=torch.int32)
    outcomes = [True, True, True, False, True, True, False, True, True, True, True, False, False, False]
    for applied in outcomes:
        ours.update(applied)
        torch._amp_update_scale_(scale, growth, torch.tensor([0.0 if applied else 1.0]), 2.0, 0.5, 3)
        assert (ours.value, ours.good_steps) == (scale.item(), growth.item())


@pytest.mark.parametrize(("value", "after", "exhausted"), [(4.0, 2.0, False), (2.0, 1.0, True), (1.0, 1.0, True)])
def test_the_lowest_scale_is_one(value: float, after: float, exhausted: bool):
    scale = LossScale(value)
    scale.update(False)
    assert (scale.value, scale.exhausted) == (after, exhausted)
    assert not LossScale(1.5).exhausted
