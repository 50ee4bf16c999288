"""Features of single frames from a video encoder, at any resolution, and the pixel baseline.

A video encoder takes cubes (tubelets) of several frames. An adapter builds the encoder's input for a single frame,
without later frames:

- ``duplicate``: a clip of one time step, whose cubes repeat the frame;
- ``pairs``: a clip of one time step, whose cubes contain the previous frame and this frame;
- ``sliding``: a full-length clip that ends with the frame. The features are those of its last time step, in which the
  frame is repeated.

The position embeddings are interpolated in space, separately for each time step.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as functional
from torch import Tensor

from motionmae.models.cubes import all_cubes, cut_patches
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD, Encoder


def encoder_features(
    frames: Iterable[Tensor], encoder: Encoder, adapter: str, device: torch.device
) -> Iterator[Tensor]:
    """Yield features (width, rows, columns) of each frame, uint8 (H, W, 3); H and W are multiples of the cube size."""
    clip = encoder.clip
    before: list[Tensor] = []
    length = {"duplicate": 1, "pairs": 2, "sliding": (clip.temporal_patches - 1) * clip.cube_frames + 1}[adapter]
    for frame in frames:
        before = [*before, frame][-length:]
        window = [before[0]] * (length - len(before)) + before  # pad with the first frame at the start of the video
        if adapter == "pairs":
            window = [window[0]] * (clip.cube_frames - 1) + window[1:]
        else:
            window = window[:-1] + [frame] * clip.cube_frames
        yield encode(torch.stack(window).to(device), encoder)


@torch.inference_mode()
def encode(window: Tensor, encoder: Encoder) -> Tensor:
    """Encode a clip, uint8 (T, H, W, 3); return the features (width, rows, columns) of its last time step."""
    clip = encoder.clip
    rows, columns = (side // clip.cube_size for side in window.shape[1:3])
    pixels = all_cubes(cut_patches(window[None], clip.cube_size), clip.cube_frames)  # (1, N, values)
    steps = len(window) // clip.cube_frames
    tokens = encoder.project(torch.addcmul(encoder.shift, pixels.float(), encoder.scale))
    tokens = encoder.norm(encoder.blocks(tokens + positions(encoder, steps, rows, columns)))
    return tokens[0, -rows * columns :].t().unflatten(1, (rows, columns))


def positions(encoder: Encoder, steps: int, rows: int, columns: int) -> Tensor:
    """Return the position embeddings of the first ``steps`` time steps, interpolated to ``rows`` x ``columns``."""
    clip = encoder.clip
    table = encoder.pos_embed.table.unflatten(0, (clip.temporal_patches, clip.grid_size, clip.grid_size))[:steps]
    table = functional.interpolate(table.permute(0, 3, 1, 2), (rows, columns), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).flatten(0, 2)  # (steps * rows * columns, width)


def pixel_features(frames: Iterable[Tensor], cell: int) -> Iterator[Tensor]:
    """Yield the normalised pixels of each patch of ``cell`` x ``cell`` pixels: (cell * cell * 3, rows, columns)."""
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    for frame in frames:
        pixels = ((frame.float() / 255 - mean) / std)[None, None]
        rows, columns = (side // cell for side in frame.shape[:2])
        yield cut_patches(pixels, cell)[0, 0].t().unflatten(1, (rows, columns))
