"""Weights to and from Hugging Face's VideoMAE, exactly: only names change and axes are rearranged.

``VideoMAEForPreTraining`` is our model with ``target.kind=frame`` and sinusoidal positions, ``target.normalize`` being
its ``norm_pix_loss``; ``VideoMAEModel`` is the encoder. Two things to know about theirs: the encoder's final norm is
there only with ``use_mean_pooling=False`` (so are the published pre-training checkpoints), and the norms of the decoder
and of the classifier's mean token use an epsilon of 1e-5 where VideoMAE and we use 1e-6.
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
Pair = tuple[str, str]

_QKV = ("query", "key", "value")
_ATTENTION = "attention.attention"
_KERNEL = ("project.weight", "embeddings.patch_embeddings.projection.weight")
_MASK_TOKEN = ("decoders.space.mask_token", "mask_token")
_OURS_BLOCKS, _THEIR_BLOCKS = "blocks", "encoder.layer"
_OURS_DECODER_BLOCKS, _THEIR_DECODER_BLOCKS = "decoders.space.blocks", "decoder.decoder_layers"


def huggingface_config(config: Config) -> dict[str, Any]:
    """Return the arguments of ``transformers.VideoMAEConfig`` that describe the model of ``config.task``.

    Raises:
        UserError: if VideoMAE has no such model.
    """
    if config.model.pos_embed != "sinusoidal":
        raise UserError(
            f"model.pos_embed={config.model.pos_embed} is no VideoMAE, whose positions are one fixed table: "
            "export safetensors"
        )
    target = config.target
    if config.task == "pretrain" and not target.normalize and target.frame_std != 1:
        raise UserError(
            f"target.frame_std={target.frame_std} is no VideoMAE, which rebuilds pixels: export safetensors"
        )
    if config.task == "finetune" and config.finetune.mode == "attentive":
        raise UserError("finetune.mode=attentive is no VideoMAE, which pools by the mean: export safetensors")
    if config.task == "pretrain" and config.target.kind != "frame":
        raise UserError(
            f"target.kind={config.target.kind} is no VideoMAE: its pre-training model has target.kind=frame"
        )
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
        "norm_pix_loss": config.target.normalize,
        "use_mean_pooling": config.task == "finetune",
    }


def pretraining_from_huggingface(state: State) -> dict[str, Tensor]:
    """Turn a ``VideoMAEForPreTraining`` state dict into one of :class:`MotionMAE` with the frame target alone.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    theirs = _modern(state)
    inner = {name.removeprefix("videomae."): theirs.pop(name) for name in list(theirs) if name.startswith("videomae.")}
    if "layernorm.weight" not in inner:
        raise UserError(
            "the state dict lacks videomae.layernorm.weight, the encoder's final norm: "
            "take it from a model with use_mean_pooling=False"
        )
    ours = {f"encoder.{name}": value for name, value in encoder_from_huggingface(inner).items()}
    depth = _depth(theirs, _THEIR_DECODER_BLOCKS)
    ours.update({mine: _take(theirs, other) for mine, other in _decoder_pairs(depth)})
    ours.update(_join_qkv(theirs, depth, _OURS_DECODER_BLOCKS, _THEIR_DECODER_BLOCKS))
    ours[_MASK_TOKEN[0]] = _take(theirs, _MASK_TOKEN[1]).reshape(-1)
    _refuse_leftovers(theirs)
    return ours


def pretraining_to_huggingface(state: State, clip: ClipConfig) -> dict[str, Tensor]:
    """Turn a :class:`MotionMAE` state dict with the frame target alone into one of ``VideoMAEForPreTraining``.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have (such as a time head's).
    """
    ours = dict(state)
    inner = {name.removeprefix("encoder."): ours.pop(name) for name in list(ours) if name.startswith("encoder.")}
    theirs = {f"videomae.{name}": value for name, value in encoder_to_huggingface(inner, clip).items()}
    depth = _depth(ours, _OURS_DECODER_BLOCKS)
    theirs.update({other: _take(ours, mine) for mine, other in _decoder_pairs(depth)})
    theirs.update(_split_qkv(ours, depth, _OURS_DECODER_BLOCKS, _THEIR_DECODER_BLOCKS))
    theirs[_MASK_TOKEN[1]] = _take(ours, _MASK_TOKEN[0]).view(1, 1, -1)
    _refuse_leftovers(ours)
    return theirs


def classifier_from_huggingface(state: State) -> dict[str, Tensor]:
    """Turn a ``VideoMAEForVideoClassification`` state dict (with mean pooling) into one of :class:`Classifier`.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    theirs = _modern(state)
    inner = {name.removeprefix("videomae."): theirs.pop(name) for name in list(theirs) if name.startswith("videomae.")}
    ours = {f"encoder.{name}": value for name, value in encoder_from_huggingface(inner).items()}
    ours.update({mine: _take(theirs, other) for mine, other in _classifier_pairs()})
    _refuse_leftovers(theirs)
    return ours


def classifier_to_huggingface(state: State, clip: ClipConfig) -> dict[str, Tensor]:
    """Turn a :class:`Classifier` state dict into one of ``VideoMAEForVideoClassification`` with mean pooling.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have (such as trained positions).
    """
    ours = dict(state)
    inner = {name.removeprefix("encoder."): ours.pop(name) for name in list(ours) if name.startswith("encoder.")}
    theirs = {f"videomae.{name}": value for name, value in encoder_to_huggingface(inner, clip).items()}
    theirs.update({other: _take(ours, mine) for mine, other in _classifier_pairs()})
    _refuse_leftovers(ours)
    return theirs


def encoder_from_huggingface(state: State) -> dict[str, Tensor]:
    """Turn a ``VideoMAEModel`` state dict into one of :class:`~motionmae.models.vit.Encoder`.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    theirs = _modern(state)
    depth = _depth(theirs, _THEIR_BLOCKS)
    ours = {mine: _take(theirs, other) for mine, other in _encoder_pairs(depth, norm="layernorm.weight" in theirs)}
    ours.update(_join_qkv(theirs, depth, _OURS_BLOCKS, _THEIR_BLOCKS))
    ours[_KERNEL[0]] = flat_kernel(_take(theirs, _KERNEL[1]))
    _refuse_leftovers(theirs)
    return ours


def encoder_to_huggingface(state: State, clip: ClipConfig) -> dict[str, Tensor]:
    """Turn an :class:`~motionmae.models.vit.Encoder` state dict into one of ``VideoMAEModel``.

    Names are those of transformers 5; its ``from_pretrained`` renames the ``q_bias`` and ``v_bias`` of older files.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    ours = dict(state)
    depth = _depth(ours, _OURS_BLOCKS)
    theirs = {other: _take(ours, mine) for mine, other in _encoder_pairs(depth, norm="norm.weight" in ours)}
    theirs.update(_split_qkv(ours, depth, _OURS_BLOCKS, _THEIR_BLOCKS))
    kernel = _take(ours, _KERNEL[0]).unflatten(1, (clip.cube_frames, clip.cube_size, clip.cube_size, 3))
    theirs[_KERNEL[1]] = kernel.permute(0, 4, 1, 2, 3).contiguous()
    _refuse_leftovers(ours)
    return theirs


def _encoder_pairs(depth: int, *, norm: bool) -> Iterator[Pair]:
    """Names of the encoder's weights that need no change: ours, theirs."""
    yield "project.bias", "embeddings.patch_embeddings.projection.bias"
    yield from _block_pairs(depth, _OURS_BLOCKS, _THEIR_BLOCKS)
    if norm:
        yield from _affine("norm", "layernorm")


def _decoder_pairs(depth: int) -> Iterator[Pair]:
    yield "decoders.space.embed.weight", "encoder_to_decoder.weight"
    yield from _block_pairs(depth, _OURS_DECODER_BLOCKS, _THEIR_DECODER_BLOCKS)
    yield from _affine("decoders.space.norm", "decoder.norm")
    yield from _affine("decoders.space.heads.space", "decoder.head")


def _classifier_pairs() -> Iterator[Pair]:
    yield from _affine("norm", "fc_norm")
    yield from _affine("head", "classifier")


def _block_pairs(depth: int, ours: str, theirs: str) -> Iterator[Pair]:
    for number in range(depth):
        mine, other = f"{ours}.{number}", f"{theirs}.{number}"
        yield f"{mine}.attn.q_bias", f"{other}.{_ATTENTION}.query.bias"
        yield f"{mine}.attn.v_bias", f"{other}.{_ATTENTION}.value.bias"
        yield from _affine(f"{mine}.norm1", f"{other}.layernorm_before")
        yield from _affine(f"{mine}.norm2", f"{other}.layernorm_after")
        yield from _affine(f"{mine}.attn.proj", f"{other}.attention.output.dense")
        yield from _affine(f"{mine}.mlp.fc1", f"{other}.intermediate.dense")
        yield from _affine(f"{mine}.mlp.fc2", f"{other}.output.dense")


def _affine(ours: str, theirs: str) -> Iterator[Pair]:
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", f"{theirs}.{part}"


def _join_qkv(theirs: dict[str, Tensor], depth: int, target: str, source: str) -> Iterator[tuple[str, Tensor]]:
    """Stack their three matrices of each block into the one of ours."""
    for number in range(depth):
        parts = [_take(theirs, f"{source}.{number}.{_ATTENTION}.{name}.weight") for name in _QKV]
        yield f"{target}.{number}.attn.qkv.weight", torch.cat(parts)


def _split_qkv(ours: dict[str, Tensor], depth: int, source: str, target: str) -> Iterator[tuple[str, Tensor]]:
    """Cut our one matrix of each block into their three."""
    for number in range(depth):
        parts = _take(ours, f"{source}.{number}.attn.qkv.weight").chunk(3)
        for name, part in zip(_QKV, parts, strict=True):
            yield f"{target}.{number}.{_ATTENTION}.{name}.weight", part.clone()


def _modern(state: State) -> dict[str, Tensor]:
    """Rename what transformers 4, and every file published with it, calls q_bias and v_bias."""
    new = {"q_bias": "query.bias", "v_bias": "value.bias"}
    return {re.sub(r"\b[qv]_bias$", lambda found: new[found[0]], name): value for name, value in state.items()}


def _depth(state: State, prefix: str) -> int:
    """Return how many blocks there are below ``prefix``."""
    return len({name.removeprefix(f"{prefix}.").partition(".")[0] for name in state if name.startswith(f"{prefix}.")})


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"the state dict lacks {name}: is it VideoMAE's, or a frame-only model's, of the same kind?")
    return state.pop(name)


def _refuse_leftovers(state: State) -> None:
    if state:
        names = ", ".join(sorted(state)[:3])
        raise UserError(
            f"{len(state)} weights have no counterpart, {names} among them: only a model with target.kind=frame, "
            "decoder=divided and sinusoidal positions is a VideoMAE"
        )
