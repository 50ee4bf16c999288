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
        "torch finds the GPU; versions of driver and libraries, limits of the system",
        "gpu driver cudnn nccl torch cuda_of_torch cores notes",
        60,
        essential=True,
    ),
    _ANYWHERE(
        "zero_stages",
        f"{_CHECKS}.engine:check_zero_stages",
        "ZeRO 0 to 3 train alike, and DeepSpeed compiles nothing, without a CUDA toolkit",
        "spread",
        120,
    ),
    Check(
        "attention",
        f"{_CHECKS}.attention:check_attention",
        "the attention kernels that torch chooses are exact and finite for our shapes, also for very negative scores",
        "worst_error worst_gradient_error kernels",
        90,
    ),
    Check("masks", f"{_CHECKS}.numerics:check_masks", "masks are bitwise those of the CPU", "", 30),
    Check(
        "gradients",
        f"{_CHECKS}.numerics:check_gradients",
        "loss and gradients, in fp32 and bf16, are those of the CPU in fp32",
        "fp32.loss_error fp32.gradient_error bf16.loss_error bf16.gradient_error",
        90,
    ),
    _ANYWHERE(
        "host_waits",
        f"{_CHECKS}.host_waits:check_host_waits",
        "a step never waits for the whole device, and where else it waits",
        "waits_for_the_device waits_by_place",
        90,
    ),
    _ANYWHERE(
        "determinism",
        f"{_CHECKS}.determinism:check_determinism",
        "two runs with engine.deterministic=true end with the same bits",
        "smallest_model.deterministic smallest_model.default vit_b.deterministic vit_b.default",
        90,
    ),
    _ANYWHERE(
        "checkpoint",
        f"{_CHECKS}.checkpoint:check_checkpoint",
        "a restore gives back every bit at ZeRO 0, 1 and 3; how long a save stalls training",
        "zero0.stall_ms zero0.write_s zero0.restore_s zero0.gb zero1.stall_ms zero3.stall_ms",
        120,
    ),
    Check(
        "copies",
        f"{_CHECKS}.copies:check_copies",
        "copies from the loader's pinned memory overlap with computing",
        "gb_per_s ms_per_batch hidden_share",
        60,
    ),
    Check(
        "nvml", f"{_CHECKS}.nvml:check_nvml", "the exporter's metrics of the GPU agree with torch", "torch_used_gb", 60
    ),
    _ANYWHERE("speed_tiny", f"{_CHECKS}.speed:check_tiny", "speed of the smallest model", _SPEEDS, 60),
    _SPEED(
        "speed_vitb", f"{_CHECKS}.speed:check_vitb", "speed of ViT-B; memory within 10 % of the plan", _SPEEDS, 90, 20
    ),
    _SPEED(
        "speed_vitl", f"{_CHECKS}.speed:check_vitl", "speed of ViT-L; memory within 10 % of the plan", _SPEEDS, 90, 20
    ),
    _SPEED(
        "speed_vith", f"{_CHECKS}.speed:check_vith", "speed of ViT-H; memory within 10 % of the plan", _SPEEDS, 90, 25
    ),
    _ANYWHERE(
        "loader_and_kill",
        f"{_CHECKS}.runs:check_loader_and_kill",
        "a run on real shards waits for data in less than 5 % of its time, and resumes after kill -9",
        "data_wait_share clips_per_core decoders killed_after_step resumed_at_step",
        420,
        40,
        alone=True,
    ),
    _ANYWHERE(
        "preemption",
        f"{_CHECKS}.runs:check_preemption",
        "a job of `submit --cluster local` saves at SIGUSR2, and resumes at the same step",
        "preempted_at_step resumed_at_step exit_code",
        420,
        40,
        alone=True,
    ),
    _ANYWHERE(
        "finetuning",
        f"{_CHECKS}.finetuning:check_finetuning",
        "fine-tuning runs; test and export agree with the CPU",
        "probability_error_fp32 probability_error_auto exported_tensors",
        150,
        20,
    ),
    _ANYWHERE(
        "nccl",
        f"{_CHECKS}.several_gpus:check_nccl",
        "collectives between the GPUs give right values, and their bandwidth",
        "ranks gb_per_s_float32 gb_per_s_bfloat16",
        90,
        20,
        needs_gpus=True,
        on_each=True,
    ),
    _ANYWHERE(
        "overlap_comm",
        f"{_CHECKS}.several_gpus:check_overlap",
        "reduction during the backward pass gives the same weights, and how much of it is hidden",
        "weight_error overlap_comm=True.hidden_share overlap_comm=False.hidden_share",
        120,
        20,
        needs_gpus=True,
        on_each=True,
    ),
    _ANYWHERE(
        "elasticity",
        f"{_CHECKS}.runs:check_elasticity",
        "a run on all GPUs that is killed resumes on one",
        "killed_after_step resumed_at_step",
        420,
        40,
        needs_gpus=True,
        alone=True,
    ),
    _SPEED(
        "speed_vitb_compiled", f"{_CHECKS}.speed:check_vitb_compiled", "speed of ViT-B with compile", _COMPILED, 300, 60
    ),
    _SPEED(
        "speed_vitl_compiled", f"{_CHECKS}.speed:check_vitl_compiled", "speed of ViT-L with compile", _COMPILED, 400, 90
    ),
)
"""All checks."""

BY_NAME = {check.name: check for check in CHECKS}
