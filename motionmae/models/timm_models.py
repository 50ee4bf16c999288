"""Fine-tuning models in timm's registry. Import this module, then call ``timm.create_model("motionmae_vit_base_...")``.

The models take clips uint8 (B, 16, 224, 224, 3). ``checkpoint_path`` is the model.safetensors of an exported
fine-tuning run with the same number of classes.
"""

from typing import Any

from timm.models import register_model
from torch import nn

from motionmae.config import Config
from motionmae.models.classifier import Classifier, build_classifier


def _build(size: str, num_classes: int, drop_path_rate: float, **unused: Any) -> Classifier:
    """Make a classifier. With ``num_classes=0`` the model returns the pooled features instead of logits."""
    if unused.get("pretrained"):
        raise ValueError("MotionMAE publishes no weights: set checkpoint_path to an exported model.safetensors")
    config = Config().updated({"model.size": size, "finetune.drop_path": drop_path_rate})
    model = build_classifier(config, max(num_classes, 1))
    if num_classes == 0:
        model.head = nn.Identity()  # type: ignore[assignment]
    return model


@register_model
def motionmae_vit_tiny_patch16_224(num_classes: int = 400, drop_path_rate: float = 0.0, **unused: Any) -> Classifier:
    return _build("vit_ti", num_classes, drop_path_rate, **unused)


@register_model
def motionmae_vit_small_patch16_224(num_classes: int = 400, drop_path_rate: float = 0.0, **unused: Any) -> Classifier:
    return _build("vit_s", num_classes, drop_path_rate, **unused)


@register_model
def motionmae_vit_base_patch16_224(num_classes: int = 400, drop_path_rate: float = 0.0, **unused: Any) -> Classifier:
    return _build("vit_b", num_classes, drop_path_rate, **unused)


@register_model
def motionmae_vit_large_patch16_224(num_classes: int = 400, drop_path_rate: float = 0.0, **unused: Any) -> Classifier:
    return _build("vit_l", num_classes, drop_path_rate, **unused)


@register_model
def motionmae_vit_huge_patch16_224(num_classes: int = 400, drop_path_rate: float = 0.0, **unused: Any) -> Classifier:
    return _build("vit_h", num_classes, drop_path_rate, **unused)
