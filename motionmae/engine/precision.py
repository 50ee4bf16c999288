"""Number formats: what `auto` means on a device, and the loss scale that fp16 needs."""

from dataclasses import dataclass

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """``precision`` with ``auto`` replaced: bf16 on a GPU that computes in it, fp32 elsewhere (CPUs emulate bf16)."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


@dataclass
class LossScale:
    """Factor on the loss that lifts small fp16 gradients out of underflow: halved by an overflow, doubled after
    ``patience`` steps without one (the rule and the numbers of ``torch.amp.GradScaler``).

    DeepSpeed 0.19's own scaler under ``torch_autocast`` clips before it unscales and never lowers its scale after an
    overflow, hence this one, handed to DeepSpeed through ``override_loss_scale``.
    """

    value: float = 65536.0
    good_steps: int = 0
    patience: int = 2000

    def update(self, applied: bool) -> None:
        """Take note of a step: ``applied``, or skipped because its gradient overflowed."""
        self.good_steps = self.good_steps + 1 if applied else 0
        if not applied:
            self.value = max(self.value / 2, 1.0)
        elif self.good_steps == self.patience:
            self.value, self.good_steps = self.value * 2, 0

    @property
    def exhausted(self) -> bool:
        """Whether the scale is at its floor, so that a further overflow is none of its making."""
        return self.value <= 1.0
