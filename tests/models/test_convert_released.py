"""Files as the authors released them: random weights under their names against computations by hand."""

import argparse
import os
import pickle
from pathlib import Path, PurePosixPath

import pytest
import torch
from torch import Tensor, nn

from motionmae.checkpointing.load_weights import load_encoder, load_state, load_state_dict_strict
from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.classifier import build_classifier
from motionmae.models.convert import MAE_ST_MEAN, MAE_ST_STD
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import build_motionmae
from motionmae.models.vit import Encoder
from tests.models.tiny import noise_clips, tiny


def random_state(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in module.state_dict().items()}


def kernel_of(config: Config, flat: Tensor) -> Tensor:
    """(width, p0 p1 p2 c) -> the weight of a Conv3d patch embedding (width, c, p0, p1, p2)."""
    clip = config.clip
    return flat.view(-1, clip.cube_frames, clip.cube_size, clip.cube_size, 3).permute(0, 4, 1, 2, 3).contiguous()


def as_videomae(config: Config, state: dict[str, Tensor], finetuned: bool) -> dict[str, Tensor]:
    """Map our names to those of VideoMAE's files (modeling_pretrain.py, modeling_finetune.py)."""
    theirs = {}
    for name, value in state.items():
        new = name
        if name == "encoder.project.weight":
            new, value = "encoder.patch_embed.proj.weight", kernel_of(config, value)
        new = new.replace("encoder.project.bias", "encoder.patch_embed.proj.bias")
        new = new.replace("decoders.space.embed.", "encoder_to_decoder.").replace(
            "decoders.space.heads.space.", "decoder.head."
        )
        new = new.replace("decoders.space.blocks.", "decoder.blocks.").replace("decoders.space.norm.", "decoder.norm.")
        if name == "decoders.space.mask_token":
            new, value = "mask_token", value.view(1, 1, -1)
        if finetuned:
            new = new.replace("encoder.", "") if name.startswith("encoder.") else new.replace("norm.", "fc_norm.")
        theirs[new] = value
    return theirs


@pytest.mark.parametrize("wrapper", ["model", "module", None])
def test_pretraining_files_of_videomae(wrapper: str | None, tmp_path: Path):
    config = tiny(target={"kind": "frame"})
    model = build_motionmae(config)
    state = random_state(model)
    content = as_videomae(config, state, finetuned=False)
    assert "encoder.blocks.0.attn.q_bias" in content
    assert content["encoder.patch_embed.proj.weight"].ndim == 5
    arguments = argparse.Namespace(lr=1.5e-4, opt_betas=[0.9, 0.95], window_size=(8, 14, 14), resume="")
    saved = {wrapper: content, "epoch": 3, "scaler": {"scale": 65536.0}, "args": arguments}  # as its utils.save_model
    torch.save(saved if wrapper else content, tmp_path / "file.pth")
    weights = load_state(tmp_path / "file.pth")
    load_state_dict_strict(model, weights.state, weights.origin)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_fine_tuned_files_of_videomae(tmp_path: Path):
    config = tiny()
    model = build_classifier(config, 5)
    state = random_state(model)
    content = as_videomae(config, state, finetuned=True)
    assert {"patch_embed.proj.weight", "fc_norm.weight", "head.weight"} < content.keys()
    torch.save({"module": content}, tmp_path / "file.pth")  # as DeepSpeed saved them
    weights = load_state(tmp_path / "file.pth")
    load_state_dict_strict(model, weights.state, weights.origin)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "model.net._orig_mod.",
            "_orig_mod.module.")  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_trainers_are_removed(prefix: str, tmp_path: Path):
    config = tiny()
    model = build_classifier(config, 5)
    state = random_state(model)
    content = {prefix + name: value for name, value in as_videomae(config, state, finetuned=True).items()}
    torch.save({"state_dict": content}, tmp_path / "file.ckpt")
    assert_equal_states(load_state(tmp_path / "file.ckpt").state, state)


def test_our_own_names_are_found_under_the_prefixes_of_compiled_and_wrapped_blocks(tmp_path: Path):
    state = random_state(build_classifier(tiny(), 5))
    content = {
        "model." + name.replace("blocks.0.", "blocks.0._orig_mod._checkpoint_wrapped_module."): value
        for name, value in state.items()
    }
    torch.save(content, tmp_path / "file.pth")
    assert_equal_states(load_state(tmp_path / "file.pth").state, state)


def test_a_file_of_two_models_is_refused_with_both_names(tmp_path: Path):
    torch.save({"model.head.weight": torch.zeros(2), "net.head.weight": torch.ones(2)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"holds two models, with model\.head\.weight and net\.head\.weight"):
        load_state(tmp_path / "file.pth")


MMACTION = {  # VideoMAE's name: that of mmaction2's VisionTransformer (vit_mae.py), mmcv's PatchEmbed and FFN
    "patch_embed.proj.": "patch_embed.projection.",
    ".mlp.fc1.": ".mlp.layers.0.0.",
    ".mlp.fc2.": ".mlp.layers.1.",
}


@pytest.mark.parametrize("learnt", [False, True])
def test_files_of_mmaction2(learnt: bool, tmp_path: Path):
    config = tiny(model={"pos_embed": "learnable" if learnt else "sinusoidal"})
    model = build_classifier(config, 5)
    state = random_state(model)
    cubes, width = config.clip.cubes, state["head.weight"].shape[1]
    number = torch.arange(cubes).view(-1, 1) * torch.pow(10000, -(torch.arange(width) // 2 * 2 / width)).view(1, -1)
    number[:, 0::2], number[:, 1::2] = number[:, 0::2].sin(), number[:, 1::2].cos()  # its get_sinusoid_encoding
    content = {"backbone.pos_embed": number[None]}
    for name, value in as_videomae(config, state, finetuned=True).items():
        for ours, theirs in MMACTION.items():
            name = name.replace(ours, theirs)
        name = f"backbone.{name}" if not name.startswith("head.") else name.replace("head.", "cls_head.fc_cls.")
        content["backbone.pos_embed" if name == "backbone.pos_embed.table" else name] = value
    torch.save({"state_dict": content, "meta": {"epoch": 1}}, tmp_path / "file.pth")
    assert_equal_states(load_state(tmp_path / "file.pth").state, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path):
    config = tiny()
    model = build_classifier(config, 5)
    content = as_videomae(config, random_state(model), finetuned=True)
    content["blocks.1.mlp.fc1.weight"][0, 0] = value
    torch.save({"model": content}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"holds NaN or infinite values in blocks\.1\.mlp\.fc1\.weight: give other"):
        load_encoder(model.encoder, str(tmp_path / "file.pth"))


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


class MaeStBlock(nn.Module):
    """MAE-ST's block: separate q, k and v, each with a bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q", "k", "v", "proj")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (self.attn[n](y).unflatten(2, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


def test_the_encoder_of_mae_st_but_for_its_class_token(tmp_path: Path):
    """MAE-ST's forward pass without the class token, against ours with converted weights."""
    config = tiny(model={"pos_embed": "learnable"})
    clip, width = config.clip, 48
    torch.manual_seed(0)
    theirs = nn.ModuleDict(
        {
            "patch_embed": nn.ModuleDict({"proj": nn.Conv3d(3, width, (2, 8, 8), (2, 8, 8))}),
            "blocks": nn.ModuleList(MaeStBlock(width, config.model.heads) for _ in range(config.model.depth)),
            "norm": nn.LayerNorm(width, eps=1e-6),
        }
    )
    content = {name: value * 1.5 for name, value in theirs.state_dict().items()}
    theirs.load_state_dict(content)
    content["pos_embed_spatial"] = torch.randn(1, clip.spatial_patches, width) * 0.1
    content["pos_embed_temporal"] = torch.randn(1, clip.temporal_patches, width) * 0.1
    content["cls_token"] = torch.randn(1, 1, width)
    content["decoder_embed.weight"] = torch.randn(8, width)
    torch.save({"model_state": content}, tmp_path / "mae_st.pyth")

    clips = noise_clips(config, 2)
    pixels = ((clips / 255 - MAE_ST_MEAN) / MAE_ST_STD).permute(0, 4, 1, 2, 3)
    tokens = theirs["patch_embed"]["proj"](pixels).flatten(2).transpose(1, 2)  # (B, N, width)
    space = content["pos_embed_spatial"].repeat(1, clip.temporal_patches, 1)
    tokens = tokens + space + content["pos_embed_temporal"].repeat_interleave(clip.spatial_patches, 1)
    for block in theirs["blocks"]:
        tokens = block(tokens)
    encoder = Encoder(config.clip, config.model)
    load_encoder(encoder, str(tmp_path / "mae_st.pyth"))
    torch.testing.assert_close(encoder(cut_patches(clips, 8)), theirs["norm"](tokens), atol=2e-5, rtol=1e-4)

    with pytest.raises(UserError, match=r"unexpected pos_embed\.table \(set model\.pos_embed=learnable"):
        load_encoder(Encoder(config.clip, tiny().model), str(tmp_path / "mae_st.pyth"))


def test_files_that_hold_no_weights_or_would_run_code(tmp_path: Path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": print}))
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save({"args": argparse.Namespace(run=os.system)}, tmp_path / "system.pth")
    torch.save({"args": argparse.Namespace(out=PurePosixPath("out"))}, tmp_path / "path.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"no tensors at all")
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, tmp_path / "resnet.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for name, said in (
        ("evil.pth", r"cannot be read as weights \(damaged, or not written by torch\.save\)"),
        ("text.pth", "cannot be read as weights"),
        ("empty.pth", "cannot be read as weights"),
        ("system.pth", r"\(it holds posix\.system, which is neither a tensor nor a plain value\): give safetensors"),
        ("path.pth", r"\(it holds pathlib\S*\.PurePosixPath, which is neither"),
        ("noise.safetensors", "cannot be read as weights"),
        ("resnet.pth", r"unknown model \(such as fc\.weight\)"),
        ("tensor.pth", "holds a Tensor and not a state dict"),
        ("gone.pth", "there are no weights at"),
    ):
        with pytest.raises(UserError, match=said):
            load_state(tmp_path / name)
