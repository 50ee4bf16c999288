"""The model on DeepSpeed: ZeRO 0-3, precision, accumulation, clipping, and a step that refuses non-finite gradients.

DeepSpeed's ZeRO optimisers measure the gradient norm over all ranks before they step, clip by it, and skip the step
on every rank when it is not finite. Stage 0 has none of this, so :class:`GuardedAdamW` adds it there; the rest of the
program sees one behaviour for all stages.
"""

import importlib
import logging
import math
import os
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.config.schema import accumulation_steps
from motionmae.distributed.context import DistributedContext
from motionmae.engine import sharded_state
from motionmae.engine.precision import LossScale, resolve_precision

BUCKET = 50_000_000
"""Values that travel in one message; DeepSpeed's default of 500 million takes 2 GB of every GPU."""


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips, and skips a step whose gradient norm is not finite; ``overflow`` tells DeepSpeed so.

    Gradients are the same on every rank when ``step`` is called (stage 0 has all-reduced them), so every rank decides
    the same.
    """

    def __init__(self, groups: list[dict[str, Any]], clip_grad: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.clip_grad = clip_grad
        self.loss_scale = 1.0
        self.overflow = False
        self._global_grad_norm: Tensor | None = None  # DeepSpeed reads it under this name

    def override_loss_scale(self, scale: float) -> None:
        """Divide gradients by ``scale`` from now on (named as in DeepSpeed's optimisers)."""
        self.loss_scale = scale

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters, unless the norm of their gradient is not finite."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        self._global_grad_norm = norm
        self.overflow = not bool(norm.isfinite())
        if self.overflow:
            return
        if self.clip_grad > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        super().step()


class Engine:
    """A model that takes optimiser steps; with :mod:`zero_state`, the only code that talks to DeepSpeed.

    Args:
        model: to be trained.
        groups: its parameters, with the weight decay of each group.
        config: of the run.
        rank: of this process.
        stage: of ZeRO, for measurements of what a run would not take; None: :func:`stage_of`.

    Attributes:
        deepspeed: DeepSpeed's engine.
        optimizer: DeepSpeed's optimiser; at stage 0 a :class:`GuardedAdamW`.
        stage: ZeRO stage, see :func:`stage_of`.
        accumulation: micro-batches of one step.
        precision: fp32, bf16 or fp16, as resolved for the device.
        loss_scale: state of fp16's loss scale, else None.
        parameters: trained parameters by name, in the model's order, the same on every rank.
        averages: their running averages by name, where ``optim.ema_decay`` asks for them.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        config: Config,
        rank: DistributedContext,
        stage: int | None = None,
    ) -> None:
        self.stage = stage_of(config, rank.world) if stage is None else stage
        self.accumulation = accumulation_steps(config, rank.world)
        self.precision = resolve_precision(config.engine.precision, rank.device)
        self.loss_scale = LossScale() if self.precision == "fp16" else None
        if config.engine.deterministic:
            make_deterministic()
        decay = config.optim.ema_decay
        self._average = ModelEmaV3(model.to(rank.device), decay) if decay else None
        self.deepspeed, self.optimizer, _, _ = import_deepspeed(rank.device).initialize(
            model=model,
            optimizer=build_optimizer(groups, config, self.stage),
            config=deepspeed_config(config, self.stage, self.precision, self.accumulation),
            dist_init_required=False,
        )
        if rank.world == 1 and stage is None:  # nobody to reduce with: DeepSpeed would copy all gradients twice
            self.deepspeed.enable_backward_allreduce = False
        self.parameters = {name: p for name, p in self.deepspeed.module.named_parameters() if p.requires_grad}
        averages = dict(self._average.module.named_parameters()) if self._average else {}
        self.averages = {name: averages[name] for name in self.parameters if averages}
        sharded_state.create_states(self)
        self.set_loss_scale()
        if config.engine.compile:
            self.deepspeed.compile()

    def __call__(self, *inputs: Any) -> Any:
        """The model's forward pass, under the configured autocast."""
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss / accumulation``; a loss that is not finite makes every gradient NaN.

        An infinite loss can have finite gradients, which would be applied. A NaN factor instead travels through the
        reduction to every rank, so that all skip the step, without a message or a wait of its own.
        """
        loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
        if self.loss_scale and self.stage == 0:
            loss = loss * self.loss_scale.value
        self.deepspeed.backward(loss)

    def step(self) -> bool:
        """End a micro-batch; with the last of a step, update the weights. False: that step was skipped, everywhere."""
        last = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.step()
        if not last:
            return True
        applied = bool(self.deepspeed.was_step_applied())
        if applied and self._average:
            self._average.update(self.deepspeed.module)
        if self.loss_scale:
            self.loss_scale.update(applied)
            self.set_loss_scale()
        return applied

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all ranks, before clipping; infinite or NaN where it was skipped."""
        norm = self.deepspeed.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    @property
    def learning_rate(self) -> float:
        """Learning rate that the next step takes; where layers differ, the highest."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def set_loss_scale(self) -> None:
        """Make ``loss_scale`` the one in force, in place of DeepSpeed's own scalers (see :class:`LossScale`)."""
        if self.loss_scale is None:
            return
        self.deepspeed.torch_autocast_z0_gradscaler = None
        self.optimizer.torch_autocast_gradscaler = None
        self.optimizer.override_loss_scale(self.loss_scale.value)

    def close(self) -> None:
        """Give up DeepSpeed's hooks and buffers."""
        self.deepspeed.destroy()


def stage_of(config: Config, ranks: int) -> int:
    """ZeRO stage of a run: ``engine.zero_stage``, and 0 for a single rank, which has nobody to share with.

    Stages 1 to 3 would only cost it copies of parameters and gradients (docs/performance.md).
    """
    return config.engine.zero_stage if ranks > 1 else 0


def build_optimizer(groups: list[dict[str, Any]], config: Config, stage: int) -> torch.optim.AdamW:
    """AdamW over parameter groups that bring their own weight decay."""
    optim = config.optim
    options: dict[str, Any] = {
        "lr": optim.peak_lr,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.eps,
        "fused": True,
    }
    if stage == 0:
        return GuardedAdamW(groups, optim.clip_grad, **options)
    return torch.optim.AdamW(groups, **options)


def deepspeed_config(config: Config, stage: int, precision: str, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration; whatever it would otherwise choose by itself and matters is written out."""
    batch = config.engine.micro_batch_size * config.data.repeated_sampling
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed clips at 1.0 unless told otherwise; at stage 0 GuardedAdamW clips.
        "gradient_clipping": config.optim.clip_grad if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if precision != "fp32":
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        settings["torch_autocast"] = {"enabled": True, "dtype": dtype}
    return settings


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed (seconds, hence not at the top) set up for ``device``, silent but for warnings."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Its own calls of collectives that torch has since renamed, repeated in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    import deepspeed

    _import_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory collectives are compiled for 30 s at every fresh installation; gloo serves as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _import_muon() -> None:
    """Import the Muon optimiser, as DeepSpeed will, without its compiling.

    No run of ours uses it, but DeepSpeed imports it to look at an optimiser's class, and its ``@torch.compile`` loads
    the whole of torch's compiler: a second of every start.
    """
    with patch("torch.compile", lambda function=None, **_: function or (lambda later: later)), suppress(ImportError):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def make_deterministic() -> None:
    """Ask torch for kernels that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
