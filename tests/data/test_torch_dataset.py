"""The Dataset and sampler for other loops, against the loader of the training itself."""

import json
import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch

import motionmae
from motionmae.config import Config
from motionmae.data.loader import Batch, ClipLoader
from motionmae.data.torch_dataset import Position
from motionmae.errors import UserError
from tests.training.shards import make_shards

SETTINGS = {
    "clip.frames": 4, "clip.size": 32, "clip.stride": 1, "clip.cube_size": 8, "data.shuffle_window_shards": 2,
    "data.random_erasing": 0.5,
}  # fmt: skip
BATCH, STEPS = 12, 2  # of 26 samples: 2 steps an epoch, and 2 samples are left out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", shards=2, samples=13, classes=3)


def open_data(shards: Path, rank: int, world: int, micro: int, **options: object) -> motionmae.ClipData:
    given = {"batch_size": BATCH, "seed": 5, "settings": SETTINGS, **options}
    return motionmae.dataset(str(shards), rank=rank, world=world, micro_batch_size=micro, **given)


def trained_on(shards: Path, rank: int, world: int, micro: int, step: int, count: int) -> list[Batch]:
    """The micro-batches of a rank that trains, copied."""
    config = Config().updated({**SETTINGS, "data.shards": str(shards), "seed": 5})
    options = {"batch": BATCH, "micro_batch_size": micro, "rank": rank, "world": world}
    with ClipLoader(config.data, config.clip, seed=5, **options) as loader:
        return [Batch(*(None if part is None else part.clone() for part in batch)) for batch in
                islice(loader.batches(step), count)]  # fmt: skip


def same(theirs: list[torch.Tensor], ours: Batch) -> bool:
    clips, labels, seeds, samples = theirs
    pairs = ((clips, ours.clips), (labels, ours.labels), (seeds, ours.seeds), (samples, ours.samples))
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (1, 4), (2, 3), (3, 4)])
def test_batches_are_the_micro_batches_of_the_training(world: int, micro: int, shards: Path):
    for rank in range(world):
        data = open_data(shards, rank, world, micro)
        found = [batch for _ in range(2) for batch in data.loader()]  # two epochs
        wanted = trained_on(shards, rank, world, micro, 0, len(found))
        assert len(found) == 2 * STEPS * BATCH // (world * micro)
        assert all(same(one, other) for one, other in zip(found, wanted, strict=True))


def test_worker_processes_give_the_same_clips(shards: Path):
    data = open_data(shards, 0, 1, 4)
    data.dataset[3]  # files are open when the workers start
    found = list(data.loader(num_workers=2))
    assert all(same(one, other) for one, other in zip(found, trained_on(shards, 0, 1, 4, 0, 6), strict=True))
    again = pickle.loads(pickle.dumps(data.dataset))
    assert torch.equal(again[Position(3, 7)].clip, data.dataset[Position(3, 7)].clip)


def test_a_resume_on_other_ranks_continues_the_stream(shards: Path):
    first = open_data(shards, 0, 1, 12)
    list(islice(iter(first.loader()), 1))
    state = json.loads(json.dumps(first.sampler.state_dict(step=1)))
    for rank in range(3):
        data = open_data(shards, rank, 3, 2)
        data.sampler.load_state_dict(state)
        assert len(data.sampler) == 4  # the other step of the epoch
        found = [*data.loader(), *data.loader()]
        assert all(same(one, other) for one, other in zip(found, trained_on(shards, rank, 3, 2, 1, 6), strict=True))
    with pytest.raises(UserError, match=r"another stream of samples \(seed was 5 and is 6\)"):
        open_data(shards, 0, 1, 12, seed=6).sampler.load_state_dict(state)


def test_an_epoch_can_be_chosen_and_numbers_are_of_epoch_0(shards: Path):
    data = open_data(shards, 0, 1, 12)
    data.sampler.set_epoch(3)
    assert {position.step for position in data.sampler} == {6, 7}
    assert data.dataset[17].sample == data.dataset[Position(1, 5)].sample
    assert len({data.dataset[number].sample for number in range(len(data.dataset))}) == len(data.dataset) == 24
    with pytest.raises(IndexError):
        data.dataset[24]
    assert data.dataset.class_names == ("bar0", "bar1", "bar2")


def test_a_mixture_has_the_order_of_the_training(shards: Path, tmp_path: Path):
    other = make_shards(tmp_path / "other", shards=1, samples=10, classes=3)
    sources = [{"path": str(shards), "weight": 3.0}, {"path": str(other), "weight": 1.0}]
    data = motionmae.dataset(sources, batch_size=BATCH, micro_batch_size=4, seed=5, settings=SETTINGS, rank=0, world=1)
    found = [*data.loader(), *data.loader()]
    config = Config().updated({**SETTINGS, "data.shards": sources})
    with ClipLoader(config.data, config.clip, seed=5, batch=BATCH, micro_batch_size=4) as loader:
        for theirs, batch in zip(found, loader.batches(0), strict=False):
            assert same(theirs, batch)
        assert len(found) == 2 * loader.steps_per_epoch * 3


def test_a_damaged_sample_is_replaced_as_in_the_training(shards: Path, tmp_path: Path):
    import shutil

    copy = shutil.copytree(shards, tmp_path / "copy")
    tar = next(copy.glob("*-000000.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    tar.write_bytes(content)
    found = list(open_data(copy, 0, 1, 12).loader())
    wanted = trained_on(copy, 0, 1, 12, 0, 2)
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))
    intact = trained_on(shards, 0, 1, 12, 0, 2)
    assert not all(torch.equal(one.samples, other.samples) for one, other in zip(wanted, intact, strict=True))


def test_mistakes_are_one_sentence(shards: Path):
    for options, said in (
        ({"batch_size": 100}, "fewer than one step takes"),
        ({"micro_batch_size": 5}, "engine.micro_batch_size=5"),
        ({"rank": 2, "world": 2}, "ranks count from 0"),
        ({"settings": {"clip.frames": 3}}, "clip.frames=3"),
        ({"settings": {"data.repeated_sampling": 2}}, "data.repeated_sampling"),
    ):
        with pytest.raises(UserError, match=said):
            motionmae.dataset(str(shards), **{"batch_size": 12, **options})
    with pytest.raises(UserError, match="does not exist"):
        motionmae.dataset(str(shards / "none"), batch_size=4)
