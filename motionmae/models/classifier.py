"""The fine-tuning model: the encoder over all cubes, pooled, a fresh LayerNorm, a linear head (VideoMAE's)."""

from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.models.cubes import cut_patches
from motionmae.models.vit import NORM_EPS, Encoder

HEAD_SCALE = 1e-3
"""The head starts at a thousandth of its usual weights, so that fine-tuning starts from even odds."""


class Classifier(nn.Module):
    """A video classifier on a pre-trained encoder; the encoder's final norm gives way to one behind the pooling.

    With ``finetune.mode`` linear or attentive the encoder is frozen: it takes no gradient and drops no path.
    """

    def __init__(self, config: Config, classes: int):
        """Make a classifier as ``config.finetune`` says."""
        super().__init__()
        finetune, size = config.finetune, config.model.dimensions
        self.cube_size = config.clip.cube_size
        self.frozen = finetune.frozen
        drop_path = 0.0 if self.frozen else finetune.drop_path
        self.encoder = Encoder(config.clip, config.model, drop_path=drop_path, final_norm=False)
        self.encoder.requires_grad_(not self.frozen)
        # attentive: one trained query looks at all cubes, then an MLP (the attentive probe of V-JEPA)
        self.pool = (
            AttentionPoolLatent(size.width, num_heads=size.heads, norm_layer=nn.LayerNorm)
            if finetune.mode == "attentive"
            else None
        )
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.head = nn.Linear(size.width, classes)
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=0.02).mul_(HEAD_SCALE)
            nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips of grey levels (B, T, H, W, 3), bytes or mixed floats, to logits (B, classes)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder(cut_patches(clips, self.cube_size))  # (B, N, width)
        return self.head(self.norm(self.pool(tokens) if self.pool else tokens.mean(1)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise decay: projection and positions 0, then the blocks, then norm and head."""
        return {
            "stem": r"^encoder\.(?:project|pos_embed)",
            "blocks": r"^encoder\.blocks\.(\d+)",
            "head": r"^(?:pool|norm|head)\.",
        }


def build_classifier(config: Config, classes: int) -> Classifier:
    """Make the classifier with initial weights that follow from ``config.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Classifier(config, classes)
