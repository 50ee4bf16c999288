"""Whole tensors out of a ZeRO engine and back into it, one parameter at a time, at every stage.

A checkpoint that knows neither world size nor ZeRO stage needs each parameter and its two AdamW moments in full.
DeepSpeed's own loads are not used: they refuse another world size, and at stage 3 they mix up parameter groups.
What is read and set here are, by stage:

- 0: the parameter, and the optimiser's state of it;
- 1, 2: the parameter, kept whole on every rank, and each rank's fragment of the moments;
- 3: fragments of everything, of which the last one is padded.

Parameters are fp32 at every precision (autocast lowers copies), so parameter and master copy are the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor, nn

if TYPE_CHECKING:  # the engine itself calls create_states
    from motionmae.engine.deepspeed_engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""

KINDS = ("parameter", *MOMENTS)
"""The tensors that a parameter has in a checkpoint, all of the parameter's shape."""


def create_states(engine: Engine) -> None:
    """Give AdamW its state now, as its first step would: zeros.

    The engine calls it once, before the first step. DeepSpeed links moments to parameters when they first appear, but
    0.19 stops after the first parameter group; with all states in place the link is complete.
    """
    for flat, fused in _flat_parameters(engine):
        engine_states(engine)[flat] = {
            "step": torch.zeros((), device=flat.device if fused else None),
            **{kind: torch.zeros_like(flat) for kind in MOMENTS},
        }
    if engine.stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def engine_states(engine: Engine) -> dict[Tensor, dict[str, Any]]:
    """AdamW's state on this rank, by the (flattened) parameter it updates."""
    optimizer = engine.optimizer.optimizer if engine.stage else engine.optimizer
    return optimizer.state


def optimizer_steps(engine: Engine) -> int:
    """Updates that AdamW has made: steps without those skipped. Sets its bias correction."""
    return int(next(iter(engine_states(engine).values()))["step"])


def set_updates(engine: Engine, count: int) -> None:
    """Make AdamW continue after ``count`` updates."""
    for state in engine_states(engine).values():
        state["step"].fill_(count)


def shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape of a parameter, also where ZeRO-3 has left this rank a fragment."""
    return getattr(parameter, "ds_shape", parameter.shape)


def read(engine: Engine, parameter: nn.Parameter, kind: str) -> Tensor:
    """The whole tensor of one of KINDS, on the engine's device. Collective; may alias the live value."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if kind == "parameter":
        return safe_get_full_fp32_param(parameter) if engine.stage == 3 else parameter.detach()
    if engine.stage == 0:
        return engine_states(engine)[parameter][kind]
    return safe_get_full_optimizer_state(parameter, kind)


def is_whole_here(engine: Engine, parameter: nn.Parameter) -> bool:
    """Whether this rank holds a parameter and its moments in full, so that :func:`read_here` works.

    Stages 1 and 2 cut one flat tensor of all parameters among the ranks, so few parameters are cut themselves.
    """
    if engine.stage in (1, 2):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        return mapping is not None and mapping.lp_fragment_address.numel == parameter.numel()
    return engine.stage == 0


def read_here(engine: Engine, parameter: nn.Parameter, kind: str) -> Tensor:
    """The live tensor of one of KINDS, without asking other ranks."""
    if kind == "parameter" or engine.stage == 0:
        return read(engine, parameter, kind)
    return parameter._hp_mapping.get_optim_state_fragment(kind).view(parameter.shape)  # type: ignore[attr-defined]


def read_fragment(parameter: nn.Parameter, kind: str) -> Tensor:
    """Stage 3: this rank's fragment of one of KINDS, flat, without asking other ranks."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if kind == "parameter":
        return safe_get_local_fp32_param(parameter)
    return safe_get_local_optimizer_state(parameter, kind)


def join(fragments: list[Tensor], shape: torch.Size) -> Tensor:
    """The whole tensor of all ranks' fragments, of which the last ones are padded."""
    return torch.cat(fragments)[: shape.numel()].view(shape)


def set_full_state(engine: Engine, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
    """Set a parameter and its moments from whole tensors, one for each of KINDS, equal on all ranks. Collective."""
    if engine.stage == 3:
        _install_fragments(parameter, values)
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


def _install_fragments(parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
    """Stage 3. DeepSpeed's setters of whole tensors cannot fill the padded last fragment: set this rank's own."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(values["parameter"])  # weights that stay gathered between steps are renewed by this
    rank, world = dist.get_rank(), dist.get_world_size()
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]

    def fragment(value: Tensor) -> Tensor:
        return functional.pad(value.flatten(), (0, size * world - value.numel())).narrow(0, size * rank, size)

    safe_set_local_fp32_param(parameter, fragment(values["parameter"]))
    for kind in MOMENTS:
        safe_set_local_optimizer_state(parameter, fragment(values[kind]), kind)


def _flat_parameters(engine: Engine) -> Iterator[tuple[Tensor, bool]]:
    """What AdamW updates on this rank, and whether by its fused kernel (which keeps its step count on the device)."""
    fused = bool(engine.optimizer.param_groups[0].get("fused"))
    if engine.stage == 0:
        flats = [p for group in engine.optimizer.param_groups for p in group["params"]]
    elif engine.stage == 3:
        flats = engine.optimizer.fp32_partitioned_groups_flat
    else:
        flats = engine.optimizer.single_partition_of_fp32_groups
    for flat in flats:
        yield flat, fused
