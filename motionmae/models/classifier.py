"""The fine-tuning model: the encoder over all cubes, their mean, a fresh LayerNorm, a linear head (VideoMAE's)."""

import torch
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.models.cubes import cut_patches
from motionmae.models.sizes import resolve
from motionmae.models.vit import NORM_EPS, Encoder

HEAD_SCALE = 1e-3
"""The head starts at a thousandth of its usual weights, so that fine-tuning starts from even odds."""


class Classifier(nn.Module):
    """A video classifier on a pre-trained encoder; the encoder's final norm gives way to one behind the pooling."""

    def __init__(self, config: Config, classes: int, drop_path: float = 0.0):
        """Make a classifier; ``drop_path`` is the rate of the last block, 0.1 for B and 0.2 for L (Table 6b)."""
        super().__init__()
        self.cube_size = config.clip.cube_size
        self.encoder = Encoder(config.clip, config.model, drop_path=drop_path, final_norm=False)
        width = resolve(config.model).width
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=0.02).mul_(HEAD_SCALE)
            nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips uint8 (B, T, H, W, 3) to logits (B, classes)."""
        tokens = self.encoder(cut_patches(clips, self.cube_size))  # (B, N, width)
        return self.head(self.norm(tokens.mean(1)))

    def load_encoder(self, state: dict[str, Tensor]) -> None:
        """Take over the encoder of a :class:`~motionmae.models.motionmae.MotionMAE` state dict, without its norm."""
        prefix = "encoder."
        kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self.encoder.load_state_dict({name: value for name, value in kept.items() if not name.startswith("norm.")})


def build_classifier(config: Config, classes: int, drop_path: float = 0.0) -> Classifier:
    """Make the classifier with initial weights that follow from ``config.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Classifier(config, classes, drop_path)
