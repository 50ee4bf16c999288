"""Write pictures and videos: PNG, H.264 in mp4, and GIF. Their metadata says that this project wrote them."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from motionmae.files import atomic_path
from motionmae.outputs import SIGNATURE


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write uint8 frames (H, W, 3) as H.264 in mp4. An odd height or width is cropped by one pixel."""
    with atomic_path(path, durable=False) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        container.metadata["comment"] = SIGNATURE
        stream = None
        for frame in frames:
            height, width = (side // 2 * 2 for side in frame.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            encoded = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(encoded))
        if stream is not None:
            container.mux(stream.encode())


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a PNG."""
    notes = PngInfo()
    notes.add_text("Software", SIGNATURE)
    with atomic_path(path, durable=False) as temporary:
        Image.fromarray(picture).save(temporary, "PNG", pnginfo=notes)


def write_gif(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write uint8 frames (H, W, 3) as a GIF that loops forever."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    options = {"save_all": True, "append_images": others, "duration": 1000 // fps, "loop": 0}
    with atomic_path(path, durable=False) as temporary:
        first.save(temporary, format="GIF", comment=SIGNATURE.encode(), **options)
