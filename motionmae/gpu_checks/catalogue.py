"""Catalogue of all checks, in the order in which they run: what is most likely to break comes first."""

from functools import partial

from motionmae.gpu_checks.check import Check

_CHECKS = "motionmae.gpu_checks.checks"
_ANYWHERE = partial(Check, needs_gpu=False)
_SPEED = partial(Check, only_full=True, alone=True)
_SPEEDS = "ms clips_per_second mfu busy_share attention_share used_gb planned_gb"
_COMPILED = "ms clips_per_second mfu first_step_s busy_share used_gb"

CHECKS = (
    _ANYWHERE(
        "environment",
        f"{_CHECKS}.environment:check_environment",
        "gpu driver cudnn nccl torch cuda_of_torch cores notes",
        60,
        essential=True,
    ),
    _ANYWHERE(
        "zero_stages",
        f"{_CHECKS}.engine:check_zero_stages",
        "spread",
        120,
    ),
    Check(
        "attention",
        f"{_CHECKS}.attention:check_attention",
        "worst_error worst_gradient_error kernels",
        90,
    ),
    Check("masks", f"{_CHECKS}.numerics:check_masks", "", 30),
    Check(
        "gradients",
        f"{_CHECKS}.numerics:check_gradients",
        "fp32.loss_error fp32.gradient_error bf16.loss_error bf16.gradient_error",
        90,
    ),
    _ANYWHERE(
        "host_waits",
        f"{_CHECKS}.host_waits:check_host_waits",
        "waits_for_the_device waits_by_place",
        90,
    ),
    _ANYWHERE(
        "determinism",
        f"{_CHECKS}.determinism:check_determinism",
        "smallest_model.deterministic smallest_model.default vit_b.deterministic vit_b.default",
        90,
    ),
    _ANYWHERE(
        "checkpoint",
        f"{_CHECKS}.checkpoint:check_checkpoint",
        "zero0.stall_ms zero0.write_s zero0.restore_s zero0.gb zero1.stall_ms zero3.stall_ms",
        120,
    ),
    Check(
        "copies",
        f"{_CHECKS}.copies:check_copies",
        "gb_per_s ms_per_batch hidden_share",
        60,
    ),
    Check("nvml", f"{_CHECKS}.nvml:check_nvml", "torch_used_gb", 60),
    _ANYWHERE("speed_tiny", f"{_CHECKS}.speed:check_tiny", _SPEEDS, 60),
    _SPEED("speed_vitb", f"{_CHECKS}.speed:check_vitb", _SPEEDS, 90, 20),
    _SPEED("speed_vitl", f"{_CHECKS}.speed:check_vitl", _SPEEDS, 90, 20),
    _SPEED("speed_vith", f"{_CHECKS}.speed:check_vith", _SPEEDS, 90, 25),
    _ANYWHERE(
        "loader_and_kill",
        f"{_CHECKS}.runs:check_loader_and_kill",
        "data_wait_share clips_per_core decoders killed_after_step resumed_at_step",
        420,
        40,
        alone=True,
    ),
    _ANYWHERE(
        "preemption",
        f"{_CHECKS}.runs:check_preemption",
        "preempted_at_step resumed_at_step exit_code",
        420,
        40,
        alone=True,
    ),
    _ANYWHERE(
        "finetuning",
        f"{_CHECKS}.finetuning:check_finetuning",
        "probability_error_fp32 probability_error_auto exported_tensors",
        150,
        20,
    ),
    _ANYWHERE(
        "nccl",
        f"{_CHECKS}.several_gpus:check_nccl",
        "ranks gb_per_s_float32 gb_per_s_bfloat16",
        90,
        20,
        needs_gpus=True,
        on_each=True,
    ),
    _ANYWHERE(
        "overlap_comm",
        f"{_CHECKS}.several_gpus:check_overlap",
        "weight_error overlap_comm=True.hidden_share overlap_comm=False.hidden_share",
        120,
        20,
        needs_gpus=True,
        on_each=True,
    ),
    _ANYWHERE(
        "elasticity",
        f"{_CHECKS}.runs:check_elasticity",
        "killed_after_step resumed_at_step",
        420,
        40,
        needs_gpus=True,
        alone=True,
    ),
    _SPEED("speed_vitb_compiled", f"{_CHECKS}.speed:check_vitb_compiled", _COMPILED, 300, 60),
    _SPEED("speed_vitl_compiled", f"{_CHECKS}.speed:check_vitl_compiled", _COMPILED, 400, 90),
)
"""All checks."""

BY_NAME = {check.name: check for check in CHECKS}
