"""The model on DeepSpeed: ZeRO 0-3, precision, gradient accumulation, clipping, and skipping of non-finite steps.

DeepSpeed's ZeRO optimisers compute the gradient norm over all ranks before a step, clip by it, and skip the step on
every rank when the norm is not finite. DeepSpeed does none of this at stage 0, where :class:`_Guard` clips and skips in
the same way.
"""

import ctypes
import importlib
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from motionmae.config import Config, OptimConfig
from motionmae.config.schema import accumulation_steps
from motionmae.config.training import BUCKET
from motionmae.distributed.context import DistributedContext
from motionmae.engine import sharded_state
from motionmae.engine.kernels import choose_kernels
from motionmae.engine.muon import Muon, lay_out, split_matrices
from motionmae.engine.precision import LossScale, autocast, resolve_precision
from motionmae.slow_imports import without_package


class _Guard(torch.optim.Optimizer):
    """Clipping, and skipping of a step with a non-finite gradient norm. The host does not wait for the decision.

    Stage 0 has all-reduced the gradients before ``step`` is called. Every rank therefore takes the same decision.

    Attributes:
        found_inf: 1.0 on the device if the last step was skipped, else 0.0. torch's fused kernels and Muon read it.
    """

    def __init__(self, *args: Any, clip_grad: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.clip_grad = clip_grad
        self.loss_scale = 1.0
        self.found_inf: Tensor | None = None
        self._global_grad_norm: Tensor | None = None  # DeepSpeed reads this name

    def override_loss_scale(self, scale: float) -> None:
        """Divide gradients by ``scale`` in later steps (DeepSpeed's name)."""
        self.loss_scale = scale

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters, or leave them unchanged if the gradient norm is not finite."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        self._global_grad_norm = norm
        self.found_inf = norm.isfinite().logical_not().float()
        if self.clip_grad > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        super().step()  # of the optimiser beside this class


class GuardedAdamW(_Guard, torch.optim.AdamW):
    """AdamW of stage 0."""


class GuardedMuon(_Guard, Muon):
    """Muon of stage 0."""


class Engine:
    """Model and optimiser on DeepSpeed. Only this class and :mod:`sharded_state` talk to DeepSpeed.

    Args:
        stage: overrides the config's ZeRO stage, for measurements.

    Attributes:
        optimizer: DeepSpeed's optimiser; at stage 0 a :class:`_Guard`.
        accumulation: number of micro-batches in one step.
        precision: fp32, bf16 or fp16, never auto.
        loss_scale: loss scale of fp16; None at other precisions.
        parameters: trained parameters by name, in the model's order, the same on every rank.
        averages: exponential moving averages of the parameters by name; empty if ``optim.ema_decay`` is 0.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        config: Config,
        rank: DistributedContext,
        stage: int | None = None,
    ) -> None:
        self.stage = config.engine.stage(rank.world) if stage is None else stage
        self.accumulation = accumulation_steps(config, rank.world)
        self.precision = resolve_precision(config.engine.precision, rank.device)
        self.loss_scale = LossScale() if self.precision == "fp16" else None
        if rank.device.type == "cpu":
            keep_freed_memory()
        choose_kernels(config, rank.device)
        self._applied: bool | None = None  # of the last step; None until the host has read it
        decay = config.optim.ema_decay
        self._average = ModelEmaV3(model.to(rank.device), decay) if decay else None
        self.deepspeed, self.optimizer, _, _ = import_deepspeed(rank.device).initialize(
            model=model,
            optimizer=build_optimizer(model, groups, config.optim, self.stage),
            config=deepspeed_config(config, self.stage, self.precision, self.accumulation),
            dist_init_required=False,
        )
        if rank.world == 1 and stage is None:  # DeepSpeed would copy all gradients twice for a reduction of one rank
            self.deepspeed.enable_backward_allreduce = False
        self.parameters = {name: p for name, p in self.deepspeed.module.named_parameters() if p.requires_grad}
        averages = dict(self._average.module.named_parameters()) if self._average else {}
        self.averages = {name: averages[name] for name in self.parameters if averages}
        sharded_state.create_states(self)
        lay_out(self.optimizer, self.stage)
        self.set_loss_scale()
        if config.engine.compile:
            self.deepspeed.compile()

    def __call__(self, *inputs: Any) -> Any:
        """Run the model's forward pass under the configured autocast."""
        return self.deepspeed(*inputs)

    @contextmanager
    def evaluation(self) -> Iterator[nn.Module]:
        """Give the model that evaluation uses: the moving average of the weights, if there is one.

        It is in evaluation mode, without gradients, in the precision of training, and not compiled.
        """
        model = self._average.module if self._average else self.deepspeed.module
        modes = [(module, module.training) for module in model.modules()]
        device = next(model.parameters()).device
        model.eval()
        try:
            with torch.no_grad(), autocast(self.precision, device), torch.compiler.set_stance("force_eager"):
                yield model
        finally:
            for module, mode in modes:
                module.training = mode

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss / accumulation``; a non-finite loss makes every gradient NaN.

        An infinite loss can have finite gradients, which would be applied. A NaN factor travels to every rank through
        the gradient reduction. All ranks then skip the step without another message or barrier.
        """
        loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
        if self.loss_scale and self.stage == 0:
            loss = loss * self.loss_scale.value
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """End a micro-batch; the last one of a step updates the weights, unless all ranks skip the update."""
        last = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.step()
        self._applied = None
        if last and self._average and self.applied:
            self._average.update(self.deepspeed.module)
        if last and self.loss_scale:
            self.loss_scale.update(self.applied)
            self.set_loss_scale()

    @property
    def applied(self) -> bool:
        """False if all ranks skipped the last step's update. At stage 0 the host waits for the device here, once."""
        if self._applied is None:
            guarded = isinstance(self.optimizer, _Guard)
            self._applied = not self.optimizer.found_inf if guarded else bool(self.deepspeed.was_step_applied())
        return self._applied

    @property
    def grad_norm(self) -> float:
        """Gradient norm of the last step over all ranks, before clipping; infinite or NaN for a skipped step."""
        norm = self.deepspeed.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; with layer-wise decay, the highest."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def set_loss_scale(self) -> None:
        """Pass ``loss_scale`` to the optimiser and remove DeepSpeed's own scalers (see :class:`LossScale`)."""
        if self.loss_scale is None:
            return
        self.deepspeed.torch_autocast_z0_gradscaler = None
        self.optimizer.torch_autocast_gradscaler = None
        self.optimizer.override_loss_scale(self.loss_scale.value)

    def close(self) -> None:
        self.deepspeed.destroy()


def build_optimizer(
    model: nn.Module, groups: list[dict[str, Any]], optim: OptimConfig, stage: int
) -> torch.optim.Optimizer:
    betas = (optim.beta1, optim.beta2)
    options: dict[str, Any] = {"lr": optim.peak_lr, "betas": betas, "eps": optim.eps, "fused": True}
    if optim.name == "muon":
        groups, options["momentum"] = split_matrices(model, groups), optim.muon_momentum
        return Muon(groups, **options) if stage else GuardedMuon(groups, clip_grad=optim.clip_grad, **options)
    return torch.optim.AdamW(groups, **options) if stage else GuardedAdamW(groups, clip_grad=optim.clip_grad, **options)


def deepspeed_config(config: Config, stage: int, precision: str, accumulation: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration, with a value for every default that matters."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.engine.micro_batch_size * config.data.repeated_sampling,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed's default clips at 1.0; at stage 0 GuardedAdamW clips.
        "gradient_clipping": config.optim.clip_grad if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "overlap_comm": config.engine.overlap_comm,
        },
        "communication_data_type": config.engine.reduce_dtype,  # under autocast, DeepSpeed reads it only at stage 0
        "zero_allow_untested_optimizer": config.optim.name == "muon",  # DeepSpeed has tested its own Muon
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # would wait for the device twice in each micro-batch
    }
    if precision != "fp32":
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        settings["torch_autocast"] = {"enabled": True, "dtype": dtype}
        if config.engine.reduce_dtype == "fp32":  # by default, gradients of linear layers are sent in 16 bits
            settings["torch_autocast"]["lower_precision_safe_modules"] = []
    return settings


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed, which takes seconds, set it up for ``device``, and silence all messages below warnings."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls collectives by names that torch has deprecated, in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    with without_package("mlflow"):  # only DeepSpeed's autotuner uses it, and its import takes a second
        import deepspeed

    # DeepSpeed imports its own Muon, which no run uses. Its @torch.compile would add a second to every start.
    with patch("torch.compile", lambda function=None, **_: function or (lambda later: later)), suppress(ImportError):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # DeepSpeed's shared-memory collectives take 30 s to compile after every installation; gloo does the same work.
        # The first use of this dictionary probes all operators, which takes a second and warns on GPUs without nvcc.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in the process, which then keeps its peak memory until it ends.

    By default glibc maps blocks beyond 32 MiB anew for each allocation and returns the end of the heap to the kernel.
    Activations and gradients are allocated in every step, and the kernel zeroes their pages each time. Keeping them
    halves DeepSpeed's share of a step on a CPU and shortens the model's share by some per cent
    (docs/measurements/performance.md). If the environment sets MALLOC_* or GLIBC_TUNABLES, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    if mallopt and not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
