"""Weights as the authors of VideoMAE and MAE-ST released them, under our names.

VideoMAE's files become ours exactly. Of a MAE-ST file the encoder is taken: its separate tables of space and time add
up to one learnable table, its k biases have no influence on attention and are left out, its other pixel normalisation
goes into the projection; but its class token, which we have not, is lost. Fine-tuning makes up for it, frozen features
are not quite MAE-ST's own.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from motionmae.errors import UserError
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD

State = Mapping[str, Tensor]

MAE_ST_MEAN, MAE_ST_STD = 0.45, 0.225
"""What MAE-ST centres every colour by, and scales it by."""

_VIDEOMAE = (
    (r"^(?:encoder\.)?patch_embed\.proj\.", "encoder.project."),
    (r"^(?:encoder\.)?(blocks|norm)\.", r"encoder.\1."),
    (r"^encoder_to_decoder\.", "decoders.space.embed."),
    (r"^mask_token$", "decoders.space.mask_token"),
    (r"^decoder\.head\.", "decoders.space.heads.space."),
    (r"^decoder\.(blocks|norm)\.", r"decoders.space.\1."),
    (r"^fc_norm\.", "norm."),
    (r"^head\.", "head."),
)


def is_mae_st(state: State) -> bool:
    """Whether these are the names of MAE-ST's files."""
    return "pos_embed_spatial" in state


def is_videomae(state: State) -> bool:
    """Whether these are the names of VideoMAE's files, pre-trained or fine-tuned."""
    return "encoder.patch_embed.proj.weight" in state or ("patch_embed.proj.weight" in state and not is_mae_st(state))


def from_videomae(state: State) -> dict[str, Tensor]:
    """Turn VideoMAE's names into those of ``MotionMAE`` with a space head, or of ``Classifier``.

    Raises:
        UserError: a weight has no counterpart.
    """
    ours = {}
    for name, value in state.items():
        for pattern, replacement in _VIDEOMAE:
            renamed, found = re.subn(pattern, replacement, name)
            if found:
                ours[renamed] = value
                break
        else:
            raise UserError(f"the weight {name} {tuple(value.shape)} is none of VideoMAE's ViT: is it another model?")
    ours["encoder.project.weight"] = flat_kernel(ours["encoder.project.weight"])
    if "decoders.space.mask_token" in ours:
        ours["decoders.space.mask_token"] = ours["decoders.space.mask_token"].reshape(-1)
    return ours


def from_mae_st(state: State) -> dict[str, Tensor]:
    """Turn MAE-ST's encoder into that of ``MotionMAE`` with learnable positions.

    Raises:
        UserError: a weight is missing.
    """
    try:
        return _from_mae_st(state)
    except KeyError as error:
        raise UserError(f"the state dict lacks {error}, which MAE-ST's encoder has") from error


def _from_mae_st(state: State) -> dict[str, Tensor]:
    space, time = state["pos_embed_spatial"][0], state["pos_embed_temporal"][0]  # (places, width), (slots, width)
    table = (time[:, None] + space).flatten(0, 1)  # slot by slot, as cubes are numbered
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    # theirs = (pixel - 0.45) / 0.225 = ours * scale + shift, colour by colour
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    scale, shift = std / MAE_ST_STD, (mean - MAE_ST_MEAN) / MAE_ST_STD
    if kernel.ndim == 4:  # a picture's kernel, for cubes of one frame
        kernel = kernel[:, :, None]
    ours = {
        "encoder.pos_embed.table": table,
        "encoder.project.weight": flat_kernel(kernel * scale.view(1, 3, 1, 1, 1)),
        "encoder.project.bias": bias + (kernel.sum((2, 3, 4)) * shift).sum(1),
    }
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for number in range(depth):
        block = f"blocks.{number}"
        parts = [state[f"{block}.attn.{part}.weight"] for part in "qkv"]
        ours[f"encoder.{block}.attn.qkv.weight"] = torch.cat(parts)
        ours[f"encoder.{block}.attn.q_bias"] = state[f"{block}.attn.q.bias"]
        ours[f"encoder.{block}.attn.v_bias"] = state[f"{block}.attn.v.bias"]
        for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
            for kind in ("weight", "bias"):
                ours[f"encoder.{block}.{part}.{kind}"] = state[f"{block}.{part}.{kind}"]
    if "norm.weight" in state:
        ours.update({f"encoder.norm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")})
    return ours


def flat_kernel(kernel: Tensor) -> Tensor:
    """The projection of a cube as a matrix: (width, 3, p0, p1, p2) -> (width, p0 * p1 * p2 * 3)."""
    return kernel.permute(0, 2, 3, 4, 1).flatten(1)
