"""Muon for the weight matrices of transformer blocks, AdamW for all other parameters, at every ZeRO stage.

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by a nearly orthogonal matrix. Steps
are those of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"`` ("Muon is scalable for LLM training", arXiv
2502.16982), so AdamW's learning rate and weight decay apply to both. torch's class needs whole matrices, and ZeRO gives
an optimiser flat fragments: the ranks gather the update, each makes some matrices orthogonal, and applies its fragment.
DeepSpeed's Muon is not used: its momentum lies outside of the states that checkpoints here read and set.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

GROUP_KEY = "muon"
"""Key of a parameter group whose value says whether Muon trains it."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


def split_matrices(model: nn.Module, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split parameter groups into weight matrices of blocks, for Muon, and the rest. Call this before ZeRO-3 wraps.

    Projections of cubes, position tables, output layers, the layer from encoder to decoder, biases and norms remain
    with AdamW, as the authors of Muon advise for the first and the last layers.
    """
    matrices = {p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name}
    parts = (
        {**group, "params": [p for p in group["params"] if (p in matrices) == chosen], GROUP_KEY: chosen}
        for group in groups
        for chosen in (True, False)
    )
    return [part for part in parts if part["params"]]


@dataclass(frozen=True)
class _Matrix:
    """Place of a weight matrix in a flat tensor."""

    shape: torch.Size
    start: int  # first element, in the flat tensor of all ranks; at ZeRO-3, in each rank's fragment
    length: int  # elements; at ZeRO-3 in each rank's fragment, with padding


@dataclass(frozen=True)
class _Layout:
    """Places of all matrices of a flat tensor, of which each rank holds a fragment."""

    matrices: tuple[_Matrix, ...]
    interleaved: bool  # whether every matrix is divided among all ranks (ZeRO-3)


class Muon(torch.optim.AdamW):
    """AdamW whose groups with the key ``muon`` are trained by Muon.

    Muon's momentum is kept as ``exp_avg``. Its ``exp_avg_sq`` stays zero, so that checkpoints have one form.

    Attributes:
        layouts: layout of each flat tensor (ZeRO 1 to 3); a parameter without one is a whole matrix.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.momentum = momentum
        self.layouts: dict[Tensor, _Layout] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters of the groups that ZeRO has left in ``param_groups``."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group[GROUP_KEY]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group[GROUP_KEY]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_of(parameter, parameter.grad.float(), group)

    def _step_of(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        skipped = getattr(self, "found_inf", None)  # 0-dim, on the device: the host does not wait for it
        momentum = state["exp_avg"].lerp(gradient, 1 - self.momentum)
        update = gradient.lerp(momentum, self.momentum)  # Nesterov's
        decay = 1 - group["lr"] * group["weight_decay"]
        if skipped is not None:
            bad = skipped > 0
            momentum = torch.where(bad, state["exp_avg"], momentum)
            update = torch.where(bad, 0.0, update)  # an orthogonalised zero is zero
            decay = torch.where(bad, 1.0, decay)
        state["exp_avg"].copy_(momentum)
        state["step"] += 1 if skipped is None else 1 - skipped
        layout = self.layouts.get(parameter)
        scaled = _scaled(update) if layout is None else _scaled_fragment(update, layout)
        parameter.mul_(decay).add_(scaled, alpha=-group["lr"])


def lay_out(optimizer: Any, stage: int) -> None:
    """Tell a :class:`Muon` where its matrices lie in the flat tensors of DeepSpeed's ZeRO optimiser."""
    muon = optimizer.optimizer if stage else optimizer
    if not isinstance(muon, Muon):
        return
    if stage in (1, 2):
        # the parameters are views of the flat tensor of all ranks
        for flat, whole, group in zip(
            optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups_flat, optimizer.bit16_groups, strict=True
        ):
            places = tuple(
                _Matrix(p.shape, (p.data_ptr() - whole.data_ptr()) // whole.element_size(), p.numel()) for p in group
            )
            muon.layouts[flat] = _Layout(places, interleaved=False)
    if stage == 3:
        for flat, group in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
            lengths = [p.ds_tensor.ds_numel for p in group]
            starts = itertools.accumulate(lengths, initial=0)
            shapes = [p.ds_shape for p in group]
            places = tuple(itertools.starmap(_Matrix, zip(shapes, starts, lengths, strict=False)))
            muon.layouts[flat] = _Layout(places, interleaved=True)


def orthogonalise(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a nearly orthogonal matrix with the singular vectors of ``matrix`` (Newton-Schulz).

    Args:
        dtype: number format of the iteration and the result. Default: float32 on CPUs, where an emulated bfloat16 takes
            5 to 15 times as long, and bfloat16 elsewhere.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.to(dtype or (torch.float32 if matrix.device.type == "cpu" else torch.bfloat16))
    if tall := matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide


def _scaled(matrix: Tensor) -> Tensor:
    """Return the orthogonal update, scaled to the root mean square of AdamW's (0.2, arXiv 2502.16982)."""
    return orthogonalise(matrix).float() * (0.2 * math.sqrt(max(matrix.shape)))


def _scaled_fragment(fragment: Tensor, layout: _Layout) -> Tensor:
    """Return this rank's fragment of the scaled updates. All ranks must call this."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = fragment.new_empty(world, fragment.numel())
    dist.all_gather_into_tensor(whole.view(-1), fragment.contiguous())
    if layout.interleaved:
        return _interleaved(whole, layout, rank, world)
    # a matrix at a border is made orthogonal by each rank that holds a part of it
    flat, result = whole.view(-1), torch.zeros_like(fragment)
    first, end = rank * fragment.numel(), (rank + 1) * fragment.numel()
    for place in layout.matrices:
        stop = place.start + place.length
        low, high = max(place.start, first), min(stop, end)
        if low < high:
            scaled = _scaled(flat[place.start : stop].view(place.shape)).flatten()
            result[low - first : high - first] = scaled[low - place.start : high - place.start]
    return result


def _interleaved(whole: Tensor, layout: _Layout, rank: int, world: int) -> Tensor:
    """Return row ``rank`` of the scaled updates; every rank makes each ``world``-th matrix orthogonal."""
    result = torch.zeros_like(whole)
    for number, place in enumerate(layout.matrices):
        if number % world == rank:
            columns = slice(place.start, place.start + place.length)
            elements = place.shape.numel()
            scaled = whole.new_zeros(world * place.length)
            scaled[:elements] = _scaled(whole[:, columns].flatten()[:elements].view(place.shape)).flatten()
            result[:, columns] = scaled.view(world, place.length)
    dist.all_reduce(result)  # one rank's value and zeros: exact
    return result[rank]
