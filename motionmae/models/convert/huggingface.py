"""Convert weights between this project's models and Hugging Face's VideoMAE.

Names change and axes are permuted, but no value changes. ``VideoMAEForPreTraining`` corresponds to ``MotionMAE`` with
``target.kind=frame`` and sinusoidal positions, ``VideoMAEForVideoClassification`` with mean pooling to ``Classifier``,
and ``VideoMAEModel`` to the encoder. ``norm_pix_loss`` corresponds to ``target.normalize``.

Two differences in Hugging Face's code matter. The encoder has a final norm only with ``use_mean_pooling=False``, which
the published pre-training checkpoints set. The norms of the decoder and of the classifier use an epsilon of 1e-5; the
original VideoMAE and this project use 1e-6.

A weight that is missing or has no counterpart raises UserError.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from motionmae.config import ClipConfig, Config
from motionmae.errors import UserError
from motionmae.models.convert.released import flat_kernel

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
    if model == PRETRAINING and "videomae.layernorm.weight" not in theirs:
        raise UserError(
            "the state dict lacks videomae.layernorm.weight, the encoder's final norm: "
            "give weights of a model with use_mean_pooling=False"
        )
    return _rename(theirs, tuple((old, new) for new, old in _TABLES[model]))


def to_huggingface(state: State, model: str, clip: ClipConfig) -> dict[str, Tensor]:
    """Convert our state dict to one of transformers 5; ``model`` is PRETRAINING, CLASSIFIER or ENCODER.

    Raises:
        UserError: the model has a motion decoder head (the paper's time head) or learnable positions.
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
