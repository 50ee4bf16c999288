"""Read and set whole tensors of a ZeRO engine, one parameter at a time, at every stage.

A checkpoint that does not depend on world size and ZeRO stage needs each parameter and its two AdamW moments in full
(of a matrix that Muon trains, the first is its momentum and the second stays zero).
DeepSpeed's own loaders refuse a different world size, and at stage 3 they mix up parameter groups. By stage, a rank
holds:

- 0: the parameter and its optimiser state;
- 1, 2: the whole parameter, and this rank's fragment of the moments;
- 3: fragments of everything; the last fragment is padded.

Parameters are fp32 at every precision (autocast casts copies). Parameter and master copy therefore have equal values.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's moving averages of the gradient and of its square

KINDS = ("parameter", *MOMENTS)  # tensors that a checkpoint holds for each parameter; all have the parameter's shape


class HasOptimizer(Protocol):
    """The part of :class:`motionmae.engine.deepspeed_engine.Engine` that this module needs."""

    stage: int  # ZeRO stage
    optimizer: Any  # AdamW, or DeepSpeed's wrapper of it from stage 1 on


def create_states(engine: HasOptimizer) -> None:
    """Create AdamW's state of zeros before the first step.

    DeepSpeed links moments to parameters when they first appear. Version 0.19 stops after the first parameter group,
    unless all states exist.
    """
    if engine.stage == 0:
        flats = [p for group in engine.optimizer.param_groups for p in group["params"]]
    elif engine.stage == 3:
        flats = engine.optimizer.fp32_partitioned_groups_flat
    else:
        flats = engine.optimizer.single_partition_of_fp32_groups
    fused = bool(engine.optimizer.param_groups[0].get("fused"))  # the fused kernel counts steps on the device
    for flat in flats:
        engine_states(engine)[flat] = {
            "step": torch.zeros((), device=flat.device if fused else None),
            **{kind: torch.zeros_like(flat) for kind in MOMENTS},
        }
    if engine.stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def engine_states(engine: HasOptimizer) -> dict[Tensor, dict[str, Any]]:
    """Return AdamW's state on this rank by (flattened) parameter."""
    return (engine.optimizer.optimizer if engine.stage else engine.optimizer).state


def optimizer_steps(engine: HasOptimizer) -> int:
    """Return the number of AdamW's updates, without skipped steps: the exponent of the bias correction."""
    return int(next(iter(engine_states(engine).values()))["step"])


def set_optimizer_steps(engine: HasOptimizer, count: int) -> None:
    for state in engine_states(engine).values():
        state["step"].fill_(count)


def shape(parameter: nn.Parameter) -> torch.Size:
    """Return the full shape of a parameter, of which this rank may hold only a fragment (ZeRO-3)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def read(engine: HasOptimizer, parameter: nn.Parameter, kind: str) -> Tensor:
    """Gather a whole parameter, or the moment that ``kind`` names, on the device. All ranks must call this.

    The result may share memory with the live value.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if kind == "parameter":
        return safe_get_full_fp32_param(parameter) if engine.stage == 3 else parameter.detach()
    if engine.stage == 0:
        return engine_states(engine)[parameter][kind]
    return safe_get_full_optimizer_state(parameter, kind)


def is_whole_here(engine: HasOptimizer, parameter: nn.Parameter) -> bool:
    """Return whether this rank holds a parameter and its moments in full, as :func:`read_here` needs.

    Stages 1 and 2 split one flat tensor of all parameters among the ranks. Only parameters at the borders are split.
    """
    if engine.stage in (1, 2):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        return mapping is not None and mapping.lp_fragment_address.numel == parameter.numel()
    return engine.stage == 0


def read_here(engine: HasOptimizer, parameter: nn.Parameter, kind: str) -> Tensor:
    """Return the live parameter, or the moment that ``kind`` names, without communication."""
    if kind == "parameter" or engine.stage == 0:
        return read(engine, parameter, kind)
    return parameter._hp_mapping.get_optim_state_fragment(kind).view(parameter.shape)  # type: ignore[attr-defined]


def read_fragment(parameter: nn.Parameter, kind: str) -> Tensor:
    """Return this rank's flat fragment of a parameter or moment at stage 3, without communication."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if kind == "parameter":
        return safe_get_local_fp32_param(parameter)
    return safe_get_local_optimizer_state(parameter, kind)


def set_full_state(engine: HasOptimizer, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
    """Set a parameter and its moments from whole tensors by kind, equal on all ranks. All ranks must call this."""
    if engine.stage == 3:
        _set_fragments(parameter, values)
        return
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    parameter.data.copy_(values["parameter"])
    if engine.stage:
        safe_set_full_fp32_param(parameter, values["parameter"])
    for kind in MOMENTS:
        if engine.stage:
            safe_set_full_optimizer_state(parameter, values[kind], kind)
        else:
            engine_states(engine)[parameter][kind].copy_(values[kind])


def _set_fragments(parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
    """Set this rank's fragments at stage 3. DeepSpeed's setters for whole tensors cannot fill the padded last one."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(values["parameter"])  # updates weights that stay gathered between steps
    rank, world = dist.get_rank(), dist.get_world_size()
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]

    def fragment(value: Tensor) -> Tensor:
        return functional.pad(value.flatten(), (0, size * world - value.numel())).narrow(0, size * rank, size)

    safe_set_local_fp32_param(parameter, fragment(values["parameter"]))
    for kind in MOMENTS:
        safe_set_local_optimizer_state(parameter, fragment(values[kind]), kind)
