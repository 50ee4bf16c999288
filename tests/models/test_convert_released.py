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
