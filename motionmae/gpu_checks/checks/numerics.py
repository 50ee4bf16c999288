"""Checks of the model's arithmetic on the GPU against the CPU in fp32."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, all_cores, device_of, load, make_batch
from motionmae.models.masking import draw_masks, running_cells
from motionmae.models.motionmae import build_motionmae

_SEEDS = 64
_LIMITS = {"fp32": (1e-3, 5e-3), "bf16": (0.05, 0.2)}
"""Largest relative errors of the loss, and of all gradients together, by precision."""


def check_masks(setting: Setting) -> Figures:
    """Draw masks of every kind on both devices; they must be equal."""
    device, figures = device_of(setting), Figures()
    seeds = torch.arange(_SEEDS) * 7919
    for kind in ("tube", "random", "global", "time"):
        ratio = 0.75 if kind == "time" else 0.9
        here, there = (
            draw_masks(on, kind=kind, ratio=ratio, temporal_patches=8, spatial_patches=196)
            for on in (seeds, seeds.to(device))
        )
        figures[kind] = all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
        require(figures[kind], f"{kind} masks on {device} differ from those on the CPU", figures)
    cells = [running_cells(on, ratio=0.5, temporal_patches=8, grid_size=14).cpu() for on in (seeds, seeds.to(device))]
    figures["running cells"] = torch.equal(*cells)
    require(figures["running cells"], f"running cells on {device} differ from those on the CPU", figures)
    return figures


def check_gradients(setting: Setting) -> Figures:
    """Compare loss and gradients of a shallow ViT-B (--quick: of the smallest model)."""
    if setting.quick:
        config = load(TINY, setting, "engine.micro_batch_size=2")
    else:
        config = load("vitb_k400", setting, "engine.micro_batch_size=2", "model.depth=2", "model.decoder_depth=2")
    device, figures = device_of(setting), Figures()
    model = build_motionmae(config)
    with all_cores():
        right, exact = loss_and_gradients(model, config, torch.device("cpu"), bf16=False)
    for precision, (loss_limit, gradient_limit) in _LIMITS.items():
        loss, gradients = loss_and_gradients(model, config, device, bf16=precision == "bf16")
        errors = {name: float((gradients[name] - exact[name]).norm()) for name in exact}
        relative = {name: error / max(float(exact[name].norm()), 1e-12) for name, error in errors.items()}
        worst = max(relative, key=lambda name: relative[name])
        whole = _norm(gradients[name] - exact[name] for name in exact) / _norm(exact.values())
        figures[precision] = {
            "loss_error": abs(loss / right - 1),
            "gradient_error": whole,
            "worst_gradient": worst,
            "worst_gradient_error": relative[worst],
        }
        require(
            abs(loss / right - 1) < loss_limit, f"the loss in {precision} is {loss:.5g}, right is {right:.5g}", figures
        )
        require(whole < gradient_limit, f"the gradients in {precision} are wrong by {whole:.2%}", figures)
    return figures


def loss_and_gradients(
    model: nn.Module, config: Config, device: torch.device, bf16: bool
) -> tuple[float, dict[str, Tensor]]:
    """Compute the loss of a micro-batch and its gradients by parameter name, on the CPU in fp32."""
    model.to(device).zero_grad()
    batch = make_batch(config, 0, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss = model(batch.clips, batch.seeds).total
    loss.backward()
    gradients = {
        name: p.grad.detach().float().cpu().clone() for name, p in model.named_parameters() if p.grad is not None
    }
    return float(loss.detach()), gradients


def _norm(parts: Iterable[Tensor]) -> float:
    return float(torch.stack([part.norm() for part in parts]).norm())
