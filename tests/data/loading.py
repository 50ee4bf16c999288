"""A loader of small shards, and its output in a form that tests can compare."""

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader

COUNTS = (13, 7, 20, 1, 9)  # 50 samples
CLIP = ClipConfig(frames=2, size=16, stride=1)


def loader(folder, batch=12, micro_batch_size=2, rank=0, world=1, seed=3, clip=CLIP, **data):
    config = DataConfig(**({"shards": str(folder), "shuffle_window_shards": 2, "threads": 2} | data))
    return ClipLoader(config, clip, seed=seed, batch=batch, micro_batch_size=micro_batch_size, rank=rank, world=world)


def rows(batch):
    """Identity of each clip of a batch: sample, label, mask seed and every pixel."""
    numbers = zip(batch.samples.tolist(), batch.labels.tolist(), batch.seeds.tolist(), strict=True)
    return [(*number, clip.numpy().tobytes()) for number, clip in zip(numbers, batch.clips, strict=True)]


def steps(folder, first, number, world=1, **options):
    """The clips of ``number`` steps over all ranks, each step a list in the order of the shuffle indices."""
    return steps_of([loader(folder, rank=rank, world=world, **options) for rank in range(world)], first, number)


def steps_of(loaders, first, number):
    """The same, of the loaders of all ranks, which are closed."""
    found = [[] for _ in range(number)]
    streams = [one.batches(first) for one in loaders]
    for step in range(number):
        for _ in range(loaders[0].accumulation):
            for stream in streams:
                found[step] += rows(next(stream))
    for one in loaders:
        one.close()
    return found
