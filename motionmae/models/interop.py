"""Weights to and from Hugging Face's VideoMAE, exactly: only names change and axes are rearranged.

``VideoMAEForPreTraining`` is our model with ``target.kind=frame`` and sinusoidal positions, ``target.normalize`` being
its ``norm_pix_loss``; ``VideoMAEModel`` is the encoder. Two things to know about theirs: the encoder's final norm is
there only with ``use_mean_pooling=False`` (so are the published pre-training checkpoints), and the decoder's norm uses
an epsilon of 1e-5 where VideoMAE and we use 1e-6.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from motionmae.config import ClipConfig, Config
from motionmae.errors import UserError
from motionmae.models.sizes import resolve

State = Mapping[str, Tensor]

_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of a block with a weight and a bias: our name and theirs."""
_ATTENTION = "attention.attention"
_FRAME_HEAD = "decoders.space"
_QKV = ("query", "key", "value")


def huggingface_config(config: Config) -> dict[str, Any]:
    """Return the arguments of ``transformers.VideoMAEConfig`` that describe ``config``.

    Raises:
        UserError: if VideoMAE has no such model.
    """
    if config.target.kind != "frame" or config.model.position != "sinusoidal":
        raise UserError(
            f"target.kind={config.target.kind} with model.position={config.model.position} is no VideoMAE: "
            "its pre-training model has target.kind=frame and model.position=sinusoidal"
        )
    size, clip = resolve(config.model), config.clip
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
        "use_mean_pooling": False,
    }


def pretraining_from_huggingface(state: State) -> dict[str, Tensor]:
    """Turn a ``VideoMAEForPreTraining`` state dict into one of :class:`MotionMAE` with the frame target alone.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    theirs = dict(state)
    inner = {name.removeprefix("videomae."): theirs.pop(name) for name in list(theirs) if name.startswith("videomae.")}
    ours = {f"encoder.{name}": value for name, value in encoder_from_huggingface(inner).items()}
    if "encoder.norm.weight" not in ours:
        raise UserError(
            "the state dict lacks videomae.layernorm.weight, the encoder's final norm: "
            "take it from a model with use_mean_pooling=False"
        )
    ours[f"{_FRAME_HEAD}.embed.weight"] = _take(theirs, "encoder_to_decoder.weight")
    ours[f"{_FRAME_HEAD}.mask_token"] = _take(theirs, "mask_token").reshape(-1)
    for number in _numbers(theirs, "decoder.decoder_layers."):
        ours.update(_block_from(theirs, f"decoder.decoder_layers.{number}", f"{_FRAME_HEAD}.blocks.{number}"))
    for kind in ("weight", "bias"):
        ours[f"{_FRAME_HEAD}.norm.{kind}"] = _take(theirs, f"decoder.norm.{kind}")
        ours[f"{_FRAME_HEAD}.heads.space.{kind}"] = _take(theirs, f"decoder.head.{kind}")
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
    theirs["encoder_to_decoder.weight"] = _take(ours, f"{_FRAME_HEAD}.embed.weight")
    theirs["mask_token"] = _take(ours, f"{_FRAME_HEAD}.mask_token").view(1, 1, -1)
    for number in _numbers(ours, f"{_FRAME_HEAD}.blocks."):
        theirs.update(_block_to(ours, f"{_FRAME_HEAD}.blocks.{number}", f"decoder.decoder_layers.{number}"))
    for kind in ("weight", "bias"):
        theirs[f"decoder.norm.{kind}"] = _take(ours, f"{_FRAME_HEAD}.norm.{kind}")
        theirs[f"decoder.head.{kind}"] = _take(ours, f"{_FRAME_HEAD}.heads.space.{kind}")
    _refuse_leftovers(ours)
    return theirs


def encoder_from_huggingface(state: State) -> dict[str, Tensor]:
    """Turn a ``VideoMAEModel`` state dict into one of :class:`~motionmae.models.vit.Encoder`.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    theirs = dict(state)
    kernel = _take(theirs, "embeddings.patch_embeddings.projection.weight")  # (width, 3, p0, p1, p2)
    ours = {
        "project.weight": kernel.permute(0, 2, 3, 4, 1).flatten(1),
        "project.bias": _take(theirs, "embeddings.patch_embeddings.projection.bias"),
    }
    for number in _numbers(theirs, "encoder.layer."):
        ours.update(_block_from(theirs, f"encoder.layer.{number}", f"blocks.{number}"))
    for kind in ("weight", "bias"):
        if f"layernorm.{kind}" in theirs:
            ours[f"norm.{kind}"] = theirs.pop(f"layernorm.{kind}")
    _refuse_leftovers(theirs)
    return ours


def encoder_to_huggingface(state: State, clip: ClipConfig) -> dict[str, Tensor]:
    """Turn an :class:`~motionmae.models.vit.Encoder` state dict into one of ``VideoMAEModel``.

    Names are those of transformers 5; its ``from_pretrained`` renames the ``q_bias`` and ``v_bias`` of older files.

    Raises:
        UserError: if a weight is missing, or one is there that VideoMAE does not have.
    """
    ours = dict(state)
    kernel = _take(ours, "project.weight").unflatten(1, (clip.cube_frames, clip.cube_size, clip.cube_size, 3))
    theirs = {
        "embeddings.patch_embeddings.projection.weight": kernel.permute(0, 4, 1, 2, 3).contiguous(),
        "embeddings.patch_embeddings.projection.bias": _take(ours, "project.bias"),
    }
    for number in _numbers(ours, "blocks."):
        theirs.update(_block_to(ours, f"blocks.{number}", f"encoder.layer.{number}"))
    for kind in ("weight", "bias"):
        if f"norm.{kind}" in ours:
            theirs[f"layernorm.{kind}"] = ours.pop(f"norm.{kind}")
    _refuse_leftovers(ours)
    return theirs


def _block_from(theirs: dict[str, Tensor], source: str, target: str) -> Iterator[tuple[str, Tensor]]:
    attention = f"{source}.{_ATTENTION}"
    yield f"{target}.attn.qkv.weight", torch.cat([_take(theirs, f"{attention}.{n}.weight") for n in _QKV])
    for short, name in (("q", "query"), ("v", "value")):
        old = f"{attention}.{short}_bias"  # transformers 4, and every file published with it
        yield f"{target}.attn.{short}_bias", _take(theirs, old if old in theirs else f"{attention}.{name}.bias")
    for mine, other in _IN_BLOCK.items():
        for kind in ("weight", "bias"):
            yield f"{target}.{mine}.{kind}", _take(theirs, f"{source}.{other}.{kind}")


def _block_to(ours: dict[str, Tensor], source: str, target: str) -> Iterator[tuple[str, Tensor]]:
    for name, weight in zip(_QKV, _take(ours, f"{source}.attn.qkv.weight").chunk(3), strict=True):
        yield f"{target}.{_ATTENTION}.{name}.weight", weight.clone()
    for short, name in (("q", "query"), ("v", "value")):
        yield f"{target}.{_ATTENTION}.{name}.bias", _take(ours, f"{source}.attn.{short}_bias")
    for mine, other in _IN_BLOCK.items():
        for kind in ("weight", "bias"):
            yield f"{target}.{other}.{kind}", _take(ours, f"{source}.{mine}.{kind}")


def _numbers(state: State, prefix: str) -> list[int]:
    """Numbers of the blocks below ``prefix``."""
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in state)
    return sorted({int(match[1]) for match in found if match})


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
