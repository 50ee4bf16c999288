"""Encoder sizes, by timm's names, and the decoders that go with them."""

from dataclasses import dataclass


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
"""Decoders: 384 for B and 512 for L as in the paper, half the encoder for smaller sizes, 512 for H (VideoMAE: 640)."""
