"""decode() in a real webdataset pipeline, against the project's own reader and loader."""

from pathlib import Path

import pytest
import torch
import webdataset

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import read_clip
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.webdataset import decode
from motionmae.errors import UserError
from tests.data.made_shards import flip_byte, make_raw_shards, make_shards

CLIP = ClipConfig(frames=4, size=16, stride=2, cube_size=8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wds") / "s"
    make_shards(folder, (5, 3, 4), frames=12, height=24, width=32)
    return folder


def pipeline(location: Path, **options: object) -> list[dict[str, object]]:
    tars = f"{location}/toy-{{000000..000002}}.tar"
    return list(webdataset.WebDataset(tars, shardshuffle=False).map(decode(4, 16, 2, **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [False, True])
def test_middle_clips_are_those_of_the_reader(shards: Path, tmp_path: Path, raw: bool):
    folder = shards
    if raw:
        folder = tmp_path / "raw"
        make_raw_shards(folder, open_reader(shards))
    reader = open_reader(folder)
    found = pipeline(folder)
    assert len(found) == 12
    for number, sample in enumerate(found):
        assert torch.equal(sample["clip"], read_clip(reader, number, CLIP))
        assert sample["label"] == number
        assert sample["class_name"] == str(reader.read_json(number)["class_name"])


def test_random_clips_are_those_of_the_loader(shards: Path):
    data = DataConfig(shards=str(shards), crop_scale=(0.3, 1.0))
    with ClipLoader(data, CLIP, seed=5, batch=12, micro_batch_size=12) as loader:
        batches = loader.batches(1)
        batch = next(batches)  # the whole epoch 1
        ours = {int(sample): clip.clone() for sample, clip in zip(batch.samples, batch.clips, strict=True)}
    theirs = pipeline(shards, seed=5, epoch=1, folder=shards, data=data)
    assert len(ours) == 12
    assert all(torch.equal(sample["clip"], ours[number]) for number, sample in enumerate(theirs))
    other = pipeline(shards, seed=5, epoch=2, folder=shards, data=data)
    assert not all(torch.equal(sample["clip"], ours[number]) for number, sample in enumerate(other))


def test_damage_and_foreign_tars_raise_an_error_that_handlers_skip(shards: Path, tmp_path: Path):
    folder = tmp_path / "s"
    make_shards(folder, (5, 3, 4), frames=12, height=24, width=32)
    tar = folder / "toy-000000.tar"
    for offset in range(2048, 6000, 64):
        flip_byte(tar, offset)
    tars = webdataset.WebDataset(f"{folder}/toy-000000.tar", shardshuffle=False)
    with pytest.raises(CorruptSample):
        list(tars.map(decode(4, 16, 2)))
    assert 0 < len(list(tars.map(decode(4, 16, 2), handler=webdataset.ignore_and_continue))) < 5
    with pytest.raises(CorruptSample, match=r"no .json"):
        decode()({"__key__": "a", "__url__": "x.tar", "mp4": b""})
    with pytest.raises(UserError, match="give decode"):
        decode(seed=0)
