"""Pictures that the report makes from checkpoints."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from monitoring.report.pictures import reconstructions
from motionmae.checkpointing.sharded import write_tensors
from motionmae.config import save_config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.open_shards import open_reader
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from tests.training.shards import make_shards, tiny_run


def test_a_run_without_drawn_pictures_shows_its_first_clip_at_three_checkpoints(tmp_path: Path):
    shards = make_shards(tmp_path / "shards", shards=1, samples=2)
    config = tiny_run(shards, tmp_path / "runs")
    folder = RunFolder(config.run_folder)
    folder.create()
    save_config(config, folder.config)
    store, weights = CheckpointStore(folder.checkpoints), build_motionmae(config).state_dict()
    for step in (1000, 2000, 3000, 4000):
        unfinished = store.begin(step)
        file = write_tensors(unfinished / "model-00000-of-00001.safetensors", weights, tuple(weights))
        store.commit(unfinished, step, {"trainer": {"step": step}}, [file])

    shown = reconstructions(folder.path)
    assert [picture.title for picture in shown] == [f"tiny, step {step}" for step in ("1,000", "3,000", "4,000")]
    clip = read_clip(open_reader(shards), 0, config.clip).numpy()
    for picture in shown:
        strips = dict(picture.strips)
        assert list(strips) == ["original", "masked", "space head", "motion target", "time head"]
        with Image.open(io.BytesIO(base64.b64decode(strips["original"].partition(",")[2]))) as image:
            pixels = np.array(image)
        for number in range(4):  # frames of 32 pixels, each with a gap of one
            np.testing.assert_array_equal(pixels[:, 33 * number : 33 * number + 32], clip[number])
