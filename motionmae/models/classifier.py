"""The fine-tuning model as in VideoMAE: encoder of all cubes (tubelets), pooling, a new LayerNorm, a linear head."""

from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.models.cubes import cut_patches
from motionmae.models.vit import NORM_EPS, Encoder

HEAD_SCALE = 1e-3
"""Factor on the head's initial weights. It makes the class probabilities almost equal at the start."""


class Classifier(nn.Module):
    """Video classifier. A LayerNorm after the pooling replaces the encoder's final norm.

    If ``finetune.mode`` is linear or attentive, the encoder is frozen: it gets no gradient and has no drop path.
    """

    def __init__(self, config: Config, classes: int):
        super().__init__()
        finetune, size = config.finetune, config.model.dimensions
        self.cube_size = config.clip.cube_size
        self.frozen = finetune.frozen
        drop_path = 0.0 if self.frozen else finetune.drop_path
        self.encoder = Encoder(config.clip, config.model, drop_path=drop_path, final_norm=False)
        self.encoder.requires_grad_(not self.frozen)
        # attentive: cross-attention of one learned query to all cubes, then an MLP (V-JEPA's attentive probe)
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
        """Map clips (B, T, H, W, 3) to logits (B, classes). Pixels are in [0, 255]: uint8, or floats after mixup."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder(cut_patches(clips, self.cube_size))  # (B, N, width)
        return self.head(self.norm(self.pool(tokens) if self.pool else tokens.mean(1)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of the parameter groups for timm's layer-wise learning rate decay."""
        return {
            "stem": r"^encoder\.(?:project|pos_embed)",
            "blocks": r"^encoder\.blocks\.(\d+)",
            "head": r"^(?:pool|norm|head)\.",
        }


def build_classifier(config: Config, classes: int) -> Classifier:
    """Make the classifier with initial weights from ``config.seed``; the global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Classifier(config, classes)
