"""Convert the weights that the authors of VideoMAE and MAE-ST released to this project's names.

VideoMAE's weights are converted exactly. Only the encoder of MAE-ST is converted. MAE-ST's spatial and temporal
position embeddings are summed into one learnable table. Its pixel normalisation is folded into the patch projection.
Its k biases are dropped, because they do not change attention. Its class token is dropped, because this project's
encoder has none: fine-tuning recovers from this loss, but frozen features differ slightly from MAE-ST's.

A missing or unknown weight raises UserError.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from motionmae.errors import UserError
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD

State = Mapping[str, Tensor]

MAE_ST_MEAN, MAE_ST_STD = 0.45, 0.225  # MAE-ST's mean and standard deviation of each colour channel

# Pattern of the released name, our name.
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
_MAE_ST = (
    (r"^(blocks\.\d+\.attn\.)([qv])\.bias$", r"encoder.\1\2_bias"),
    (r"^(blocks\.\d+\.(?:norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.)", r"encoder.\1"),
    (r"^norm\.", "encoder.norm."),
)


def is_mae_st(state: State) -> bool:
    return "pos_embed_spatial" in state


def is_videomae(state: State) -> bool:
    return "encoder.patch_embed.proj.weight" in state or ("patch_embed.proj.weight" in state and not is_mae_st(state))


def from_videomae(state: State) -> dict[str, Tensor]:
    """Convert VideoMAE's weights to ``MotionMAE`` with only a pixel head (space head), or to ``Classifier``."""
    ours = {}
    for name, value in state.items():
        renamed = _rename(name, _VIDEOMAE)
        if renamed is None:
            raise UserError(f"unknown weight {name} {tuple(value.shape)}: give weights of VideoMAE's plain ViT")
        ours[renamed] = value
    ours["encoder.project.weight"] = flat_kernel(ours["encoder.project.weight"])
    if "decoders.space.mask_token" in ours:
        ours["decoders.space.mask_token"] = ours["decoders.space.mask_token"].reshape(-1)
    return ours


def from_mae_st(state: State) -> dict[str, Tensor]:
    """Convert MAE-ST's encoder to an encoder with learnable positions. All other weights are dropped."""
    ours = {renamed: value for name, value in state.items() if (renamed := _rename(name, _MAE_ST))}
    try:
        space, time = state["pos_embed_spatial"][0], state["pos_embed_temporal"][0]  # (P, width), (T / p0, width)
        kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
        for block in {name.partition(".attn.")[0] for name in state if re.match(r"blocks\.\d+\.attn\.", name)}:
            ours[f"encoder.{block}.attn.qkv.weight"] = torch.cat([state[f"{block}.attn.{x}.weight"] for x in "qkv"])
    except KeyError as error:
        raise UserError(f"the state dict lacks {error}: give all weights of MAE-ST's encoder") from error
    # MAE-ST's input is our input * scale + shift, per colour channel
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    scale, shift = std / MAE_ST_STD, (mean - MAE_ST_MEAN) / MAE_ST_STD
    if kernel.ndim == 4:  # a Conv2d kernel: cubes of one frame
        kernel = kernel[:, :, None]
    # ordered by time step first, like our cube numbers
    ours["encoder.pos_embed.table"] = (time[:, None] + space).flatten(0, 1)
    ours["encoder.project.weight"] = flat_kernel(kernel * scale.view(1, 3, 1, 1, 1))
    ours["encoder.project.bias"] = bias + (kernel.sum((2, 3, 4)) * shift).sum(1)
    return ours


def flat_kernel(kernel: Tensor) -> Tensor:
    """Convert a Conv3d weight (width, 3, p0, p1, p2) to our Linear weight (width, p0 * p1 * p2 * 3)."""
    return kernel.permute(0, 2, 3, 4, 1).flatten(1)


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((re.sub(pattern, ours, name) for pattern, ours in table if re.match(pattern, name)), None)
