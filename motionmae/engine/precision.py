"""Number formats: the meaning of `auto` on a device, and the loss scale of fp16."""

from dataclasses import dataclass

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """Replace ``auto`` by bf16 on a GPU with bf16 units, and by fp32 elsewhere (CPUs emulate bf16)."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass has the ``precision`` of training; ``auto`` is resolved."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve_precision(precision, device))
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@dataclass
class LossScale:
    """Loss scale that keeps small fp16 gradients from underflow, with the rule and numbers of ``torch.amp.GradScaler``.

    An overflow halves the scale; ``growth_interval`` steps without an overflow double it. DeepSpeed 0.19's own scaler
    under ``torch_autocast`` clips before it unscales and never lowers the scale after an overflow. The engine therefore
    sets this scale through ``override_loss_scale``.
    """

    value: float = 65536.0
    good_steps: int = 0
    growth_interval: int = 2000

    def update(self, applied: bool) -> None:
        """Update the scale after a step that was ``applied``, or skipped because its gradient overflowed."""
        self.good_steps = self.good_steps + 1 if applied else 0
        if not applied:
            self.value = max(self.value / 2, 1.0)
        elif self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0

    @property
    def exhausted(self) -> bool:
        """True at the lowest scale, where the scale cannot be the cause of another overflow."""
        return self.value <= 1.0
