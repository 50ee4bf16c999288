"""Mixtures of folders of shards: counts by hand arithmetic, one stream for all ranks, resumes, refusals."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from motionmae.config import DataConfig, load_config
from motionmae.data.loader import ClipLoader, check_same_stream
from motionmae.data.mixture.order import MixtureOrder
from motionmae.data.mixture.sources import largest_remainders
from motionmae.data.open_shards import load_sources
from motionmae.errors import UserError
from tests.data.loading import CLIP, rows, steps_of
from tests.data.made_shards import flip_byte, make_shards
from tests.data.shard_server import serving

BATCH = 8
A, B = (13, 7, 20), (11, 5, 4)  # 40 and 20 samples


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    make_shards(root / "a", A, frames=3)
    make_shards(root / "b", B, frames=4)
    return str(root / "a"), str(root / "b")


def mixed(folders, weights=(3, 1), key="weight", **data):
    sources = [{"path": path, key: weight} for path, weight in zip(folders, weights, strict=True)]
    return DataConfig(**{"shards": sources, "shuffle_window_shards": 2, "threads": 2} | data)


def load(data, first, number, world=1, micro_batch_size=1):
    """Return the clips of steps over all ranks, each step in the order of its positions."""
    loaders = [
        ClipLoader(data, CLIP, seed=3, batch=BATCH, micro_batch_size=micro_batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    return steps_of(loaders, first, number)


def order_of(data, batch=BATCH, seed=3):
    return MixtureOrder(load_sources(data), seed, batch)


def test_three_to_one_on_1_2_and_4_ranks_is_one_stream_with_the_stated_counts(folders):
    data = mixed(folders)
    alone = load(data, 0, 21, micro_batch_size=8)  # three epochs of 60 // 8 = 7 steps
    for world, micro in ((2, 2), (4, 1), (4, 2), (8, 1)):
        assert load(data, 0, 21, world, micro) == alone
    for step in alone:  # 3 : 1 of 8 are 6 and 2
        assert Counter(sample < 40 for sample, *_ in step) == {True: 6, False: 2}
    drawn = [sample for step in alone for sample, *_ in step]
    assert sum(sample < 40 for sample in drawn) == 126  # 3/4 of 168
    # no sample of a source comes twice before all have come once: 126 = 3 * 40 + 6, 42 = 2 * 20 + 2
    first = [sample for sample in drawn if sample < 40]
    second = [sample - 40 for sample in drawn if sample >= 40]
    for source, size in ((first, 40), (second, 20)):
        passes = [source[start : start + size] for start in range(0, len(source), size)]
        assert all(sorted(one) == list(range(size)) for one in passes[:-1])
        assert passes[0] != passes[1]


def test_three_ranks_read_the_same_stream(folders):
    data = mixed(folders)
    streams = {}
    for world, micro in ((1, 12), (2, 3), (3, 2), (3, 4)):
        loaders = [
            ClipLoader(data, CLIP, seed=3, batch=12, micro_batch_size=micro, rank=rank, world=world)
            for rank in range(world)
        ]
        batches = [one.batches(0) for one in loaders]
        streams[world, micro] = [
            row for _ in range(7 * loaders[0].accumulation) for batch in batches for row in rows(next(batch))
        ]
        assert loaders[0].drawn(7) == {"a": 63, "b": 21}  # 3 : 1 of 84
        for one in loaders:
            one.close()
    assert len({tuple(stream) for stream in streams.values()}) == 1
    assert Counter(row[0] < 40 for row in streams[3, 2]) == {True: 63, False: 21}


@pytest.mark.parametrize("step", [1, 6, 7, 13])
def test_resuming_at_any_step_continues_the_same_stream(folders, step):
    data = mixed(folders, (5, 2))
    assert load(data, step, 15 - step, 2, 2) == load(data, 0, 15, micro_batch_size=4)[step:]


def test_clips_of_a_repeated_sample_differ(folders):
    data = mixed(folders, (1, 3))
    seen = {}
    for step in load(data, 0, 14, micro_batch_size=8):
        for sample, _, seed, pixels in step:
            assert (seed, pixels) not in seen.setdefault(sample, set())
            seen[sample].add((seed, pixels))
    assert max(map(len, seen.values())) >= 4  # 84 samples of 20 within two epochs


@pytest.mark.parametrize("batch", [1, 5, 7, 8, 30, 60])
@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (0.9, 0.1), (1, 17)])
def test_counts_are_exact_in_an_epoch_and_within_one_in_a_step(folders, weights, batch):
    order = order_of(mixed(folders, weights), batch)
    total = 60 // batch * batch
    steps = total // batch
    share = Fraction(str(weights[0])) / (Fraction(str(weights[0])) + Fraction(str(weights[1]))) * total
    for epoch in range(2):
        in_epoch = Counter()
        for step in range(epoch * steps, (epoch + 1) * steps):
            found = Counter(order.draw(step, offset).source for offset in range(batch))
            assert abs(found[0] - share / steps) < 2
            in_epoch += found
            assert order.drawn(step + 1)[0] - order.drawn(step)[0] == found[0]
        assert abs(in_epoch[0] - share) <= Fraction(1, 2)
        assert sum(in_epoch.values()) == total


def test_shares_stay_even_over_the_steps_of_an_epoch(tmp_path):
    make_shards(tmp_path / "a", (350,), frames=1)
    make_shards(tmp_path / "b", (50,), frames=1)
    data = mixed((str(tmp_path / "a"), str(tmp_path / "b")), (7, 1))
    order = order_of(data, batch=4)  # 0.5 samples of b in a step
    for step in range(101):
        assert abs(order.drawn(step)[1] - step / 2) <= 2


def test_temperature_and_sizes_and_passes(folders):
    by_size = DataConfig(shards=list(folders))
    assert load_sources(by_size).epoch_counts(60) == (40, 20)
    assert load_sources(by_size).epoch_counts(7) == (37, 19)  # 56 samples: 37.33 and 18.67
    halved = DataConfig(shards=list(folders), mixture_temperature=2)  # sqrt(40) : sqrt(20) = 1.41421 : 1
    assert load_sources(halved).epoch_counts(60) == (35, 25)  # 35.15 and 24.85
    passes = load_sources(mixed(folders, (1, 4), "passes"))
    assert passes.epoch_samples == 120
    assert passes.epoch_counts(8) == (40, 80)
    assert load_sources(mixed(folders, (0.5, 1), "passes")).epoch_counts(40) == (20, 20)


def test_whole_numbers_by_largest_remainders():
    # the example of Wikipedia's "Quota method" (Hamilton): votes of six parties for ten seats
    votes = [47_000, 16_000, 15_900, 12_000, 6_000, 3_100]
    assert largest_remainders([Fraction(vote) for vote in votes], 10) == (5, 2, 1, 1, 1, 0)


def test_a_corrupt_sample_is_replaced_by_one_of_its_source(folders, tmp_path):
    make_shards(tmp_path / "b", B, frames=4)
    for shard in sorted((tmp_path / "b").glob("*.tar"))[:1]:
        for offset in range(1024, shard.stat().st_size, 512):
            flip_byte(shard, offset)
    data = mixed((folders[0], str(tmp_path / "b")), shuffle_window_shards=3)
    alone = load(data, 0, 7, micro_batch_size=8)
    assert alone == load(data, 0, 7, 4, 2)
    assert all(Counter(sample < 40 for sample, *_ in step) == {True: 6, False: 2} for step in alone)


def test_sources_behind_urls_and_decoding_processes_give_the_same_clips(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    local = load(mixed(folders), 0, 9, micro_batch_size=4)
    with serving(Path(folders[1])) as server:
        remote = mixed((folders[0], server.url), cache=str(tmp_path / "cache"))
        assert load(remote, 0, 9, 2, 2) == local
    assert load(mixed(folders, workers=1), 0, 9, micro_batch_size=4) == local


def test_a_list_of_one_folder_is_that_folder(folders):
    alone = DataConfig(shards=folders[0], shuffle_window_shards=2)
    listed = DataConfig(shards=[{"path": folders[0], "weight": 5}], shuffle_window_shards=2)
    assert alone == listed
    assert not listed.is_mixture


def state(data, step=4):
    with ClipLoader(data, CLIP, seed=3, batch=BATCH, micro_batch_size=8) as loader:
        return json.loads(json.dumps(loader.state(step)))


def test_another_mixture_is_refused_in_one_sentence(folders):
    identity = state(mixed(folders))
    check_same_stream(identity, state(mixed(folders, (6, 2))))  # the same shares
    for other in (mixed(folders, (1, 1)), mixed(folders[::-1], (1, 3)), DataConfig(shards=folders[0])):
        with pytest.raises(UserError, match="cannot be resumed with") as refusal:
            check_same_stream(identity, state(other))
        assert "42 samples of a" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="reads one folder of 40 samples and cannot be resumed with a mixture"):
        check_same_stream(state(DataConfig(shards=folders[0])), identity)


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ("[{path: A, weight: 3}, B]", "every folder a positive weight"),
        ("[{path: A, weight: 3}, {path: B, passes: 1}]", "every folder a positive weight"),
        ("[{path: A, wieght: 3}, B]", "did you mean weight"),
        ("[A, A/]", "listed twice"),
        ("[{path: A, weight: -1}, B]", "at least 0"),
        ("[ftp://x/a, B]", "http, https, s3"),
        ("[]", "the list is empty"),
        ("[[A]]", "each entry must be a folder"),
        ("{A: 3}", "a list of folders"),
        ("[{path: A, name: x}, {path: B, name: x}]", "two folders have the name x"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(shards, words):
    with pytest.raises(UserError, match=words) as refusal:
        load_config("tiny_toy", [f"data.shards={shards}"])
    assert "\n" not in str(refusal.value)


def test_a_source_without_samples_and_other_settings_are_refused(folders):
    with pytest.raises(UserError, match=r"the source b of data.shards gets none of the 56 samples"):
        order_of(mixed(folders, (1000, 1)))
    shards = "data.shards=[{path: a, weight: 3}, {path: b, weight: 1}]"
    with pytest.raises(UserError, match=r"data.beton=.* several"):
        load_config("tiny_toy", [shards, "data.beton=x.beton"])
    with pytest.raises(UserError, match=r"mixture_temperature=2.0 is not possible: weights"):
        load_config("tiny_toy", [shards, "data.mixture_temperature=2"])
    with pytest.raises(UserError, match="different classes"):
        ClipLoader(mixed(folders), CLIP, seed=0, batch=8, micro_batch_size=8, labelled=True)


def test_a_shared_cache_has_room_for_the_windows_of_all_remote_sources(folders, tmp_path, monkeypatch):
    """The two windows of an epoch are all three shards of a source, with 2 % for their indexes."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    needed = [1.02 * sum(shard.stat().st_size for shard in Path(folder).glob("*.tar")) / 1e9 for folder in folders]
    with serving(Path(folders[0])) as one, serving(Path(folders[1])) as other:
        urls = (one.url, other.url)
        for gigabytes in (1.01 * max(needed), 0.99 * sum(needed)):
            data = mixed(urls, cache=str(tmp_path / "cache"), cache_gb=gigabytes)
            with pytest.raises(UserError, match=rf"data\.cache_gb=.* take {sum(needed):.3g} GB"):
                ClipLoader(data, CLIP, seed=3, batch=BATCH, micro_batch_size=8)
        data = mixed(urls, cache=str(tmp_path / "cache"), cache_gb=1.01 * sum(needed))
        ClipLoader(data, CLIP, seed=3, batch=BATCH, micro_batch_size=8).close()
