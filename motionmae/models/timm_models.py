"""Fine-tuning models in timm's registry. Import this module, then call ``timm.create_model("motionmae_vit_base_...")``.

``checkpoint_path`` is the model.safetensors of an exported fine-tuning run with the same number of classes. Arguments
that a model cannot follow are refused by name, as timm's own models refuse them.
"""

from dataclasses import asdict
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.classifier import HEAD_SCALE, Classifier
from motionmae.models.cubes import cut_patches
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD

_SIZES = {"tiny": "vit_ti", "small": "vit_s", "base": "vit_b", "large": "vit_l", "huge": "vit_h"}
_NAMES = {f"motionmae_vit_{name}_patch16_224": size for name, size in _SIZES.items()}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 400,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": PIXEL_MEAN,
            "std": PIXEL_STD,
            "first_conv": "encoder.project",
            "classifier": "head",
            "license": "apache-2.0",
        }
        for name in _NAMES
    }
)
"""Input, normalisation and names of the first and last layer, for timm's `resolve_data_config`."""


class VideoClassifier(Classifier):
    """:class:`Classifier` with the methods of timm's models."""

    def __init__(self, config: Config, num_classes: int, drop_rate: float):
        super().__init__(config, max(num_classes, 1))
        self.num_features = self.head_hidden_size = config.model.dimensions.width
        self.head_drop = nn.Dropout(drop_rate)
        self._clip = config.clip
        self.register_buffer("pixel_mean", 255 * torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(PIXEL_STD), persistent=False)
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()  # type: ignore[assignment]

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips to logits, or to pooled features if the model has no classes.

        Args:
            clips: (B, T, H, W, 3) or (B, 3, T, H, W); uint8 grey levels, or floats normalised with the mean and the
                standard deviation of ``default_cfg``, as timm's transforms give them.

        Raises:
            ValueError: the clips have another shape.
        """
        return self.forward_head(self.forward_features(clips))

    def forward_features(self, clips: Tensor) -> Tensor:
        """Return the encoder's tokens, (B, N, width). See :meth:`forward`."""
        return self.encoder(cut_patches(self._grey_levels(clips), self.cube_size))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens, (B, N, width), and classify. With ``pre_logits``, leave the last layer out."""
        pooled = self.head_drop(self.norm(tokens.mean(1)))
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one of ``num_classes`` outputs, or by none if that is 0."""
        _refuse("global_pool", global_pool, (None, "avg"))
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()  # type: ignore[assignment]
        if num_classes:
            nn.init.trunc_normal_(self.head.weight, std=0.02 * HEAD_SCALE)
            nn.init.zeros_(self.head.bias)
        self.head.to(self.norm.weight.device)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass."""
        self.encoder.blocks.recompute_every = int(enable)

    def no_weight_decay(self) -> set[str]:
        return {"encoder.pos_embed.table"}

    def _grey_levels(self, clips: Tensor) -> Tensor:
        clip = self._clip
        sides = (clip.frames, clip.size, clip.size)
        if clips.shape[1:] == (3, *sides):
            clips = clips.permute(0, 2, 3, 4, 1)
        if clips.ndim != 5 or clips.shape[1:] != (*sides, 3):
            inner = ", ".join(map(str, sides))
            raise ValueError(
                f"clips have the shape {tuple(clips.shape)}, and this model takes (batch, {inner}, 3) or "
                f"(batch, 3, {inner}): set num_frames and img_size, or resize the clips"
            )
        if not clips.is_floating_point():
            return clips
        return torch.addcmul(self.pixel_mean.to(clips.dtype), clips, self.pixel_std.to(clips.dtype))  # type: ignore[arg-type]


def _register(name: str, size: str) -> None:
    """Register the classifier of ``size``. With ``num_classes=0`` it returns the pooled features instead of logits."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        *,
        num_classes: int = 400,
        img_size: int | tuple[int, int] = 224,
        num_frames: int = 16,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        features_only: bool = False,
    ) -> VideoClassifier:
        if pretrained:
            raise ValueError("MotionMAE publishes no weights: set checkpoint_path to an exported model.safetensors")
        _refuse("in_chans", in_chans, (3,))
        _refuse("global_pool", global_pool, ("avg",))
        _refuse("features_only", features_only, (False,))
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        _refuse("img_size", sides, ((sides[0], sides[0]),))
        changes = {
            "model.size": size,
            "finetune.drop_path": drop_path_rate,
            "clip.size": sides[0],
            "clip.frames": num_frames,
        }
        try:
            config = Config().updated(changes)
        except UserError as error:
            raise ValueError(f"img_size={img_size} or num_frames={num_frames} does not fit: {error}") from error
        model = VideoClassifier(config, num_classes, drop_rate)
        known = asdict(default_cfgs[name].default)
        known |= {"architecture": name, "num_classes": num_classes, "input_size": (3, *sides)}
        model.default_cfg = model.pretrained_cfg = known  # type: ignore[assignment]
        return model

    build.__name__ = name
    register_model(build)


def _refuse(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} is not possible for MotionMAE's models: leave it out, or set {allowed[0]!r}"
        )


for _name, _size in _NAMES.items():
    _register(_name, _size)
