"""Files of weights that a stranger wrote end in one sentence."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from motionmae.checkpointing.load_weights import load_state, load_state_dict_strict, read_tensors
from motionmae.errors import UserError


def holds_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def hold_each_other() -> dict[str, Any]:
    one, two = {}, {}
    one["module"], two["state_dict"] = two, one
    return one


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def half(*names: str) -> dict[str, Any]:
    return {name: torch.zeros(2) for name in names}


VIDEOMAE = ("encoder.patch_embed.proj.weight", "decoder.head.weight", "mask_token", "encoder_to_decoder.weight")
CASES: dict[str, Any] = {
    "holds itself": holds_itself(),
    "hold each other": hold_each_other(),
    "model is a tensor": {"model": torch.zeros(3)},
    "model is a scalar": {"model": torch.zeros(())},
    "model is None": {"model": None},
    "a parameter": {"state_dict": nn.Parameter(torch.zeros(3))},
    "a list": [1],
    "a tensor": torch.zeros(3),
    "a set": {"model": {1, 2}},
    "integer keys": {"args": argparse.Namespace(a=1), "model": {1: torch.zeros(2)}},
    "keys of bytes and tuples": {b"model": torch.zeros(1), (1, 2): torch.zeros(1)},
    "a command": {"model": Command()},
    "no tensors": {"model": {"encoder.project.weight": "text"}},
    "half of VideoMAE": {"model": half(*VIDEOMAE)},
    "half of VideoMAE's classifier": half("patch_embed.proj.weight"),
    "VideoMAE without a kernel": half("encoder.patch_embed.proj.weight", "encoder.blocks.0.attn.qkv.weight"),
    "half of Hugging Face's": half("classifier.weight"),
    "half of Hugging Face's pre-training": half(*VIDEOMAE[1:]),
    "half of an encoder": half("videomae.embeddings.patch_embeddings.y"),
    "q without k and v": half("classifier.weight", "videomae.encoder.layer.0.attention.attention.query.weight"),
    "half of MAE-ST": half("pos_embed_spatial"),
    "MAE-ST of other shapes": half("pos_embed_spatial", "pos_embed_temporal", "patch_embed.proj.weight",
                                   "patch_embed.proj.bias"),
    "a scalar kernel": {"patch_embed.proj.weight": torch.tensor(1.0), "head.weight": torch.zeros(1)},
}  # fmt: skip


@pytest.mark.parametrize("content", CASES.values(), ids=CASES)
def test_misshapen_weights_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UserError) as refused:
        load_state(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_wrapped_weights_are_found(tmp_path: Path):
    wanted: dict[str, Tensor] = {"encoder.project.weight": torch.ones(2)}
    torch.save({"model": {"module": {"state_dict": {"module.encoder.project.weight": torch.ones(2)}}}}, tmp_path / "w")
    assert load_state(tmp_path / "w").state.keys() == wanted.keys()


def test_a_checkpoint_without_a_listed_tensor(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not fit its manifest"):
        read_tensors(tmp_path / "model.safetensors", ["b"])


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantized"])
def test_tensors_that_cannot_be_copied_are_one_sentence(kind: str):
    tensors = {
        "meta": torch.zeros(2, 2, device="meta"),
        "sparse": torch.zeros(2, 2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.zeros(2, 2), 1.0, 0, torch.qint8),
    }
    with pytest.raises(UserError, match="weights of a stranger holds tensors that cannot be loaded"):
        load_state_dict_strict(nn.Linear(2, 2, bias=False), {"weight": tensors[kind]}, "weights of a stranger")
