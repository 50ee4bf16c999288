"""Position embeddings of frames that are not as large as the clips of the training."""

import cv2
import numpy as np
import pytest
import torch

from motionmae.evaluation.davis.frame_features import positions
from motionmae.models.vit import Encoder
from tests.models.tiny import tiny


@pytest.mark.parametrize(("steps", "rows", "columns"), [(1, 6, 11), (3, 5, 4), (2, 3, 4)])
def test_positions_are_those_of_opencvs_cubic_interpolation(steps: int, rows: int, columns: int):
    """Each time step of the table of 4 x 4 x 4 cubes, as an image with a channel for each of its 48 values."""
    config = tiny()
    encoder = Encoder(config.clip, config.model)
    images = encoder.pos_embed.table.detach().numpy().reshape(4, 4, 4, 48)[:steps]
    resized = [cv2.resize(image, (columns, rows), interpolation=cv2.INTER_CUBIC) for image in images]
    expected = torch.from_numpy(np.stack(resized)).reshape(steps * rows * columns, 48)
    torch.testing.assert_close(positions(encoder, steps, rows, columns), expected, atol=1e-5, rtol=1e-5)
