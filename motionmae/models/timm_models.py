"""Fine-tuning models in timm's registry. Import this module, then call ``timm.create_model("motionmae_vit_base_...")``.

The models take clips uint8 (B, 16, 224, 224, 3). ``checkpoint_path`` is the model.safetensors of an exported
fine-tuning run with the same number of classes.
"""

from typing import Any

from timm.models import register_model
from torch import nn

from motionmae.config import Config
from motionmae.models.classifier import Classifier, build_classifier


def _register(name: str, size: str) -> None:
    """Register the classifier of ``size``. With ``num_classes=0`` it returns the pooled features instead of logits."""

    def build(num_classes: int = 400, drop_path_rate: float = 0.0, **unused: Any) -> Classifier:
        if unused.get("pretrained"):
            raise ValueError("MotionMAE publishes no weights: set checkpoint_path to an exported model.safetensors")
        config = Config().updated({"model.size": size, "finetune.drop_path": drop_path_rate})
        model = build_classifier(config, max(num_classes, 1))
        if num_classes == 0:
            model.head = nn.Identity()  # type: ignore[assignment]
        return model

    build.__name__ = f"motionmae_vit_{name}_patch16_224"
    register_model(build)


for _name, _size in {"tiny": "vit_ti", "small": "vit_s", "base": "vit_b", "large": "vit_l", "huge": "vit_h"}.items():
    _register(_name, _size)
