"""Encoder sizes, by timm's names, and the decoders that go with them."""

from dataclasses import dataclass

from motionmae.config import ModelConfig
from motionmae.errors import UserError


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of an encoder; width and heads of its decoders."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


SIZES = {
    "vit_ti": Size(192, 12, 3, 96, 3),
    "vit_s": Size(384, 12, 6, 192, 3),
    "vit_b": Size(768, 12, 12, 384, 6),
    "vit_l": Size(1024, 24, 16, 512, 8),
    "vit_h": Size(1280, 32, 16, 512, 8),
}
"""Decoders: 384 for B and 512 for L by the paper; half the encoder for the smaller; H as L (VideoMAE's H has 640)."""


def resolve(model: ModelConfig) -> Size:
    """Return the size that ``model`` asks for, its own numbers before its name's.

    Raises:
        UserError: if a width is not a multiple of its heads.
    """
    named = SIZES[model.size]
    size = Size(
        model.width or named.width,
        model.depth or named.depth,
        model.heads or named.heads,
        model.decoder_width or named.decoder_width,
        model.decoder_heads or named.decoder_heads,
    )
    for key, width, heads in (
        ("heads", size.width, size.heads),
        ("decoder_heads", size.decoder_width, size.decoder_heads),
    ):
        if width % heads:
            fitting = [n for n in range(1, width + 1) if width % n == 0 and width // n <= 64]
            raise UserError(
                f"model.{key}={heads} is not possible: the width {width} must be a multiple of it; "
                f"set model.{key}={fitting[0]}"
            )
    return size
