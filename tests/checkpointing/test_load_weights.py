"""Files of weights that a stranger wrote end in one sentence."""

import argparse
import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from motionmae.checkpointing.load_weights import (
    _tensors_of,
    fingerprint,
    load_encoder,
    load_state,
    load_state_dict_strict,
    newest_checkpoint,
    read_tensors,
    resolve_checkpoint,
    state_fingerprint,
)
from motionmae.errors import UserError
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder


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


def test_weights_in_the_home_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"encoder.project.weight": torch.ones(2)}, tmp_path / "w")
    assert load_state("~/w").origin == load_state(Path("~/w")).origin == str(tmp_path / "w")


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


@pytest.mark.parametrize(
    ("names", "bare"),
    [
        ("module.encoder.project.weight", "encoder.project.weight"),
        ("model._orig_mod.encoder.project.weight", "encoder.project.weight"),
        ("net.backbone.module.encoder.project.weight", "encoder.project.weight"),
        ("_orig_mod.encoder._fsdp_wrapped_module.project._checkpoint_wrapped_module.weight", "encoder.project.weight"),
        ("encoder.model.project.weight", "encoder.model.project.weight"),  # not at the beginning
        ("encoder.my_orig_mod.weight", "encoder.my_orig_mod.weight"),  # not a whole part of the name
        ("modules.weight", "modules.weight"),
    ],
)
def test_what_trainers_add_to_names_is_removed(tmp_path: Path, names: str, bare: str):
    torch.save({names: torch.ones(2), "epoch": 1}, tmp_path / "w")
    assert list(_tensors_of(torch.load(tmp_path / "w"), tmp_path / "w")) == [bare]


def test_two_models_in_a_file_are_refused(tmp_path: Path):
    torch.save({"model": {"encoder.project.weight": torch.ones(2), "module.encoder.project.weight": torch.ones(2)}},
               tmp_path / "w")  # fmt: skip
    message = "holds two models, with encoder.project.weight and module.encoder.project.weight: save the state dict"
    with pytest.raises(UserError, match=message):
        load_state(tmp_path / "w")


@pytest.mark.parametrize(("depth", "found"), [(4, True), (5, False)])
def test_four_dictionaries_around_the_weights_are_opened(tmp_path: Path, depth: int, found: bool):
    content: dict[str, Any] = {"encoder.project.weight": torch.ones(2)}
    for name in ("model", "module", "state_dict", "model_state", "model")[:depth]:
        content = {name: content, "epoch": 3}
    torch.save(content, tmp_path / "w")
    if found:
        assert load_state(tmp_path / "w").state.keys() == {"encoder.project.weight"}
    else:
        with pytest.raises(UserError):
            load_state(tmp_path / "w")


def test_the_arguments_of_a_trainer_come_with_its_weights(tmp_path: Path):
    weights = {"encoder.project.weight": torch.ones(2)}
    torch.save({"model": weights, "args": argparse.Namespace(num_frames=16)}, tmp_path / "w")
    loaded = load_state(str(tmp_path / "w"))
    assert (loaded.arguments, loaded.origin) == ({"num_frames": 16}, str(tmp_path / "w"))
    torch.save({"model": weights, "args": {"num_frames": 16}}, tmp_path / "w")
    assert load_state(tmp_path / "w").arguments == {}


class Encoder(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.project = nn.Linear(2, 3)
        if norm:
            self.norm = nn.LayerNorm(3)


@pytest.mark.parametrize(("ours", "theirs", "fits"), [(True, True, True), (False, True, True), (True, False, False)])
def test_an_encoder_without_a_final_norm_takes_weights_with_one(tmp_path: Path, ours: bool, theirs: bool, fits: bool):
    torch.manual_seed(0)
    saved = {f"encoder.{name}": value for name, value in Encoder(theirs).state_dict().items()}
    torch.save(saved | {"decoder.weight": torch.ones(1)}, tmp_path / "w")
    encoder = Encoder(ours)
    if not fits:
        with pytest.raises(UserError, match=r"missing norm\.weight, norm\.bias"):
            load_encoder(encoder, str(tmp_path / "w"))
        return
    load_encoder(encoder, str(tmp_path / "w"))
    assert all(torch.equal(value, saved[f"encoder.{name}"]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(3, 2)}, r"weight has shape \(3, 2\), the model expects \(2, 2\) \(set model\.\* and"),
        ({"weight": None}, r"missing weight \(set model"),
        ({"a": torch.ones(1), "b": torch.ones(1)}, r"unexpected a, b \(set"),
        ({name: torch.ones(1) for name in "abcd"}, r"unexpected a, b, c and 1 more \(set"),
        ({name: torch.ones(1) for name in "abc"}, r"unexpected a, b, c \(set"),
        ({"weight": None, "a": torch.ones(1)}, r"missing weight; unexpected a \("),
        ({"pos_embed.table": torch.ones(1)}, r"set model\.pos_embed=learnable, or"),
        ({"pos_embed.table": torch.ones(1), "weight": torch.ones(1)}, r"set model\.\* and clip"),
        ({"weight": torch.full((2, 2), torch.nan)}, r"w holds NaN or infinite values in weight: give other weights"),
        ({"weight": torch.tensor([[1.0, 2.0], [3.0, torch.inf]])}, "w holds NaN or infinite values in weight"),
    ],
)
def test_weights_of_another_model_are_named(change: dict[str, Tensor | None], message: str):
    module = nn.Linear(2, 2)
    state = {name: value for name, value in (module.state_dict() | change).items() if value is not None}
    with pytest.raises(UserError, match=f"^w holds .*{message}" if not message.startswith("w ") else f"^{message}"):
        load_state_dict_strict(module, state, "w")


def test_equal_weights_have_equal_fingerprints_whatever_their_order():
    a, b = torch.arange(3.0), torch.tensor([[1.0]])
    assert state_fingerprint({"a": a, "b": b}) == state_fingerprint({"b": b.clone(), "a": a.clone()})
    others = [{"a": a, "b": b + 1}, {"a": a}, {"a": a, "c": b}, {"a": b, "b": a}]
    found = {state_fingerprint(state) for state in ({"a": a, "b": b}, *others)}
    assert len(found) == 5
    digest = hashlib.sha256(b"a" + struct.pack("<3f", 0, 1, 2) + b"b" + struct.pack("<f", 1)).hexdigest()
    assert state_fingerprint({"b": b, "a": a}) == digest
    linear = nn.Linear(2, 1)
    assert fingerprint(linear) == state_fingerprint(linear.state_dict())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.config.write_text("")
    return folder


def test_the_newest_checkpoint_of_a_run_or_that_of_a_step(run: RunFolder):
    with pytest.raises(UserError, match=r"has no checkpoint: choose from the saved steps \(none yet\)"):
        newest_checkpoint(run)
    store = CheckpointStore(run.checkpoints)
    for step in (2, 4, 6):
        store.commit(store.begin(step), step, {"trainer": {"data_step": step}}, [])
    assert newest_checkpoint(run).step == 6
    assert newest_checkpoint(run, 4).step == 4
    assert resolve_checkpoint(run.path) == run.checkpoints / "step-00000006"
    assert resolve_checkpoint(run.checkpoints) == run.checkpoints
    with pytest.raises(UserError, match=r"has no checkpoint of step 5: choose from the saved steps \(2, 4, 6\)"):
        newest_checkpoint(run, 5)
    with pytest.raises(UserError, match="has no best checkpoint, which training"):
        newest_checkpoint(run, "best")
    (run.checkpoints / "step-00000006/manifest.json").write_text("{")
    assert newest_checkpoint(run).step == 4
    with pytest.raises(UserError, match=r"of step 6 \(skipped step-00000006: .*\(2, 4\)$"):
        newest_checkpoint(run, 6)
    run.config.unlink()
    assert resolve_checkpoint(run.path) == run.path
