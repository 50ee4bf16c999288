"""Presets of make_shards: how large and how faithful the stored frames are."""

from typing import NamedTuple

from motionmae.data.shards.manifest import Chroma


class Preset(NamedTuple):
    """Size and encoding of stored frames. docs/data/shards.md has the measurements."""

    short_side: int  # pixels
    quality: int  # JPEG quality
    chroma: Chroma
    use: str


PRESETS = {
    "small": Preset(256, 50, "420", "less than half the disk, the fastest to load: 10 kB, 36 dB"),
    "standard": Preset(256, 90, "420", "the default: 22 kB, 41 dB"),
    "archive": Preset(320, 95, "444", "for videos above 256 rows, and crops beyond 224: 31 kB, 43 dB"),
}

DEFAULT = "standard"


def describe() -> str:
    """Return the lines of ``--help`` on presets."""
    rows = [
        f"  {name:9} short side {one.short_side}, quality {one.quality}, chroma {one.chroma}; {one.use}"
        for name, one in PRESETS.items()
    ]
    return "\n".join(
        ("presets (kB a frame, PSNR of a training crop; Kinetics, 340 x 256; docs/data/shards.md has others):", *rows)
    )
