"""timm's transformer block and attention. The first import of timm is here, without the optional imports of timm."""

from motionmae.slow_imports import without_package

with without_package("wandb"):  # for timm's logging, which nothing here uses, at the price of most of a second
    from timm.models.beit import Attention, Block

__all__ = ["Attention", "Block"]
