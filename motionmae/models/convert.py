"""Convert weights between this project's names, the files of VideoMAE and MAE-ST, and Hugging Face's VideoMAE.

**Hugging Face**: names change and axes are permuted, but no value changes. ``VideoMAEForPreTraining`` corresponds to
``MotionMAE`` with ``target.kind=frame`` and sinusoidal positions, ``VideoMAEForVideoClassification`` with mean pooling
to ``Classifier``, and ``VideoMAEModel`` to the encoder. ``norm_pix_loss`` corresponds to ``target.normalize``. Two
differences in Hugging Face's code matter. The encoder has a final norm only with ``use_mean_pooling=False``, which the
published pre-training checkpoints set. The norms of the decoder and of the classifier use an epsilon of 1e-5; the
original VideoMAE and this project use 1e-6.

**VideoMAE** as its authors released it is converted exactly, also with the names that mmaction2 gives its tensors.

**MAE-ST** as its authors released it: only the encoder is converted. The spatial and temporal position embeddings are
summed into one learnable table. The pixel normalisation is folded into the patch projection. The k biases are dropped,
because they do not change attention. The class token is dropped, because this project's encoder has none: fine-tuning
recovers from this loss, but frozen features differ slightly from MAE-ST's.

A missing or unknown weight raises UserError.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from motionmae.config import ClipConfig, Config
from motionmae.errors import UserError
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD, sinusoidal_table

State = Mapping[str, Tensor]
Table = tuple[tuple[str, str], ...]

PRETRAINING, CLASSIFIER, ENCODER = "VideoMAEForPreTraining", "VideoMAEForVideoClassification", "VideoMAEModel"

# Our name, Hugging Face's name. "*" stands for the number of a block. "." at the end stands for weight and bias.
_BLOCK: Table = (
    ("norm1.", "layernorm_before."),
    ("attn.q_bias", "attention.attention.query.bias"),
    ("attn.v_bias", "attention.attention.value.bias"),
    ("attn.qkv.weight", "attention.attention.qkv.weight"),  # joined from query, key and value
    ("attn.proj.", "attention.output.dense."),
    ("norm2.", "layernorm_after."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
_ENCODER: Table = (
    ("project.", "embeddings.patch_embeddings.projection."),
    *((f"blocks.*.{ours}", f"encoder.layer.*.{theirs}") for ours, theirs in _BLOCK),
    ("norm.", "layernorm."),
)
_INNER: Table = tuple((f"encoder.{ours}", f"videomae.{theirs}") for ours, theirs in _ENCODER)
_TABLES: dict[str, Table] = {
    ENCODER: _ENCODER,
    CLASSIFIER: (*_INNER, ("norm.", "fc_norm."), ("head.", "classifier.")),
    PRETRAINING: (
        *_INNER,
        ("decoders.space.embed.weight", "encoder_to_decoder.weight"),
        ("decoders.space.mask_token", "mask_token"),
        *((f"decoders.space.blocks.*.{ours}", f"decoder.decoder_layers.*.{theirs}") for ours, theirs in _BLOCK),
        ("decoders.space.norm.", "decoder.norm."),
        ("decoders.space.heads.space.", "decoder.head."),
    ),
}


def huggingface_config(config: Config) -> dict[str, Any]:
    """Return the arguments of transformers' VideoMAEConfig. Raise UserError if VideoMAE cannot represent the model."""
    target, pretraining = config.target, config.task == "pretrain"
    if config.model.pos_embed != "sinusoidal":
        raise _refusal(f"model.pos_embed={config.model.pos_embed}", "has sinusoidal positions")
    if pretraining and not target.normalize and target.frame_std != 1:
        raise _refusal(f"target.frame_std={target.frame_std}", "rebuilds pixels (target.frame_std=1)")
    if pretraining and target.kind != "frame":
        raise _refusal(f"target.kind={target.kind}", "rebuilds frames (target.kind=frame)")
    if not pretraining and config.finetune.mode == "attentive":
        raise _refusal("finetune.mode=attentive", "pools by the mean")
    size, clip = config.model.dimensions, config.clip
    return {
        "image_size": clip.size,
        "patch_size": clip.cube_size,
        "num_frames": clip.frames,
        "tubelet_size": clip.cube_frames,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_hidden_layers": config.model.decoder_depth,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": 4 * size.decoder_width,
        "norm_pix_loss": target.normalize,
        "use_mean_pooling": not pretraining,
    }


def _refusal(setting: str, videomae: str) -> UserError:
    return UserError(f"{setting} differs from VideoMAE, which {videomae}: use --format safetensors")


def from_huggingface(state: State, model: str) -> dict[str, Tensor]:
    """Convert a state dict of transformers 4 or 5 to our names; ``model`` is PRETRAINING, CLASSIFIER or ENCODER."""
    theirs = dict(state)
    for name in state:
        if name.endswith(("q_bias", "v_bias")):  # names in transformers 4 and in all published files
            theirs[name.replace("q_bias", "query.bias").replace("v_bias", "value.bias")] = theirs.pop(name)
        elif name.endswith("attention.query.weight"):
            parts = [name.replace("query", part) for part in ("query", "key", "value")]
            theirs[name.replace("query", "qkv")] = torch.cat([_take(theirs, part) for part in parts])
        elif name.endswith("patch_embeddings.projection.weight"):
            theirs[name] = flat_kernel(state[name])
        elif name == "mask_token":
            theirs[name] = state[name].reshape(-1)
    return _rename(theirs, tuple((old, new) for new, old in _TABLES[model]))


def to_huggingface(state: State, model: str, clip: ClipConfig) -> dict[str, Tensor]:
    """Convert our state dict to one of transformers 5; ``model`` is PRETRAINING, CLASSIFIER or ENCODER.

    A motion decoder head (the paper's time head) or learnable positions raise UserError.
    """
    theirs = _rename(state, _TABLES[model])
    for name in list(theirs):
        if name.endswith("attention.qkv.weight"):
            parts = zip(("query", "key", "value"), theirs.pop(name).chunk(3), strict=True)
            theirs.update({name.replace("qkv", part): value.clone() for part, value in parts})
        elif name.endswith("patch_embeddings.projection.weight"):
            kernel = theirs[name].unflatten(1, (clip.cube_frames, clip.cube_size, clip.cube_size, 3))
            theirs[name] = kernel.permute(0, 4, 1, 2, 3).contiguous()
        elif name == "mask_token":
            theirs[name] = theirs[name].view(1, 1, -1)
    return theirs


def _rename(state: State, table: Table) -> dict[str, Tensor]:
    """Rename every weight by ``table`` (old name, new name). The encoder's final norm may be missing in ``state``."""
    left, renamed = dict(state), {}
    for old, new in _expand(table, state):
        is_final_norm = any(re.fullmatch(r"(videomae\.)?layernorm\.\w+", name) for name in (old, new))
        if old in left or not is_final_norm:
            renamed[new] = _take(left, old)
    if left:
        names = ", ".join(sorted(left)[:3])
        raise UserError(
            f"{len(left)} weights have no counterpart in VideoMAE, such as {names}: use a model with "
            "target.kind=frame, model.decoder=divided and model.pos_embed=sinusoidal"
        )
    return renamed


def _expand(table: Table, state: State) -> Iterator[tuple[str, str]]:
    """Expand "*" to every block number in ``state``, and "." at the end to weight and bias."""
    for old, new in table:
        prefix = old.partition("*")[0]
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)}
        for number in sorted(numbers) if "*" in old else ("",):
            for part in ("weight", "bias") if old.endswith(".") else ("",):
                yield old.replace("*", number) + part, new.replace("*", number) + part


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"the state dict lacks {name}: give weights of a VideoMAE, or a model with target.kind=frame")
    return state.pop(name)


MAE_ST_MEAN, MAE_ST_STD = 0.45, 0.225  # MAE-ST's mean and standard deviation of each colour channel

# Pattern of the released name, our name.
_VIDEOMAE: Table = (
    (r"^(?:encoder\.)?patch_embed\.proj\.", "encoder.project."),
    (r"^(?:encoder\.)?(blocks|norm)\.", r"encoder.\1."),
    (r"^encoder_to_decoder\.", "decoders.space.embed."),
    (r"^mask_token$", "decoders.space.mask_token"),
    (r"^decoder\.head\.", "decoders.space.heads.space."),
    (r"^decoder\.(blocks|norm)\.", r"decoders.space.\1."),
    (r"^fc_norm\.", "norm."),
    (r"^head\.", "head."),
)
_MMACTION: Table = (  # VisionTransformer of mmaction2's vit_mae.py and mmcv's FFN, to VideoMAE's names
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^(blocks\.\d+\.mlp\.)layers\.0\.0\.", r"\1fc1."),
    (r"^(blocks\.\d+\.mlp\.)layers\.1\.", r"\1fc2."),
    (r"^cls_head\.fc_cls\.", "head."),
)
_MAE_ST: Table = (
    (r"^(blocks\.\d+\.attn\.)([qv])\.bias$", r"encoder.\1\2_bias"),
    (r"^(blocks\.\d+\.(?:norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.)", r"encoder.\1"),
    (r"^norm\.", "encoder.norm."),
)


def is_mae_st(state: State) -> bool:
    return "pos_embed_spatial" in state


def from_mmaction(state: State) -> dict[str, Tensor]:
    """Rename mmaction2's weights of a VideoMAE to VideoMAE's own names; other weights keep their names."""
    return {_rename_by_pattern(name, _MMACTION) or name: value for name, value in state.items()}


def is_videomae(state: State) -> bool:
    return "encoder.patch_embed.proj.weight" in state or ("patch_embed.proj.weight" in state and not is_mae_st(state))


def from_videomae(state: State) -> dict[str, Tensor]:
    """Convert VideoMAE's weights to ``MotionMAE`` with only a pixel head (space head), or to ``Classifier``."""
    ours = {}
    for name, value in state.items():
        renamed = _rename_by_pattern(name, _VIDEOMAE)
        if name == "pos_embed" and value.ndim > 1:
            if not _is_sinusoidal(value):  # a buffer of sinusoids holds nothing learnt
                ours["encoder.pos_embed.table"] = value.flatten(0, -2)
            continue
        if renamed is None:
            raise UserError(f"unknown weight {name} {tuple(value.shape)}: give weights of VideoMAE's plain ViT")
        ours[renamed] = value
    ours["encoder.project.weight"] = flat_kernel(ours["encoder.project.weight"])
    if "decoders.space.mask_token" in ours:
        ours["decoders.space.mask_token"] = ours["decoders.space.mask_token"].reshape(-1)
    return ours


def from_mae_st(state: State) -> dict[str, Tensor]:
    """Convert MAE-ST's encoder to an encoder with learnable positions. All other weights are dropped."""
    ours = {renamed: value for name, value in state.items() if (renamed := _rename_by_pattern(name, _MAE_ST))}
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


def _is_sinusoidal(table: Tensor) -> bool:
    """Return whether a position table (1, cubes, width) is the one that the encoder computes by itself."""
    cubes, width = table.shape[-2:]
    return table.numel() == cubes * width and torch.allclose(
        table.float().reshape(cubes, width),
        sinusoidal_table(cubes, width),
        atol=1e-2,  # bf16 rounds by up to 4e-3
    )


def flat_kernel(kernel: Tensor) -> Tensor:
    """Convert a Conv3d weight (width, 3, p0, p1, p2) to our Linear weight (width, p0 * p1 * p2 * 3)."""
    return kernel.permute(0, 2, 3, 4, 1).flatten(1)


def _rename_by_pattern(name: str, table: Table) -> str | None:
    return next((re.sub(pattern, ours, name) for pattern, ours in table if re.match(pattern, name)), None)
