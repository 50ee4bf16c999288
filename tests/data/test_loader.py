import itertools
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, SampleDecoder, read_clip
from motionmae.data.loader import ClipLoader, check_same_stream
from motionmae.data.open_shards import open_reader
from motionmae.data.rng import mask_seed
from motionmae.data.sampler import EpochSampler
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.format import index_path, load_index
from motionmae.data.shards.manifest import write_manifest
from motionmae.data.shared_buffers import SharedBufferPool
from motionmae.errors import UserError
from tests.data.loading import CLIP, COUNTS, loader, rows, steps
from tests.data.made_shards import flip_byte, frame_numbers, make_shards


@pytest.mark.parametrize(("world", "micro_batch_size"), [(1, 12), (1, 3), (2, 2), (3, 4), (3, 1), (6, 2)])
def test_the_stream_is_the_same_for_every_number_of_ranks(shards, one_rank, world, micro_batch_size):
    assert steps(shards, 0, 9, world=world, micro_batch_size=micro_batch_size) == one_rank


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_the_stream_is_the_same_for_every_number_of_threads(shards, one_rank, threads, prefetch):
    assert steps(shards, 0, 9, threads=threads, prefetch=prefetch) == one_rank


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_stream_is_the_same_for_every_number_of_processes(shards, one_rank, workers):
    assert steps(shards, 2, 7, workers=workers) == one_rank[2:]


def test_eight_and_512_ranks_share_a_batch(tmp_path):
    make_shards(tmp_path / "s", (130,) * 4, frames=2)
    options = {"batch": 512, "prefetch": 1, "threads": 1}
    alone = steps(tmp_path / "s", 1, 1, micro_batch_size=64, **options)
    assert len({row[0] for row in alone[0]}) == 512
    assert steps(tmp_path / "s", 1, 1, world=8, micro_batch_size=32, **options) == alone
    assert steps(tmp_path / "s", 1, 1, world=512, micro_batch_size=1, **options) == alone


def test_an_epoch_has_every_sample_once(shards):
    for epoch in range(3):
        (five_tens,) = steps(shards, epoch, 1, batch=50, micro_batch_size=10)
        assert sorted(row[0] for row in five_tens) == list(range(50))
        assert [row[1] for row in five_tens] == [row[0] for row in five_tens]


def test_epochs_leave_out_their_incomplete_batch_and_differ(one_rank):
    first, second = ([row[0] for step in one_rank[4 * epoch : 4 * epoch + 4] for row in step] for epoch in (0, 1))
    assert len(first) == len(set(first)) == len(set(second)) == 48
    assert first != second


@pytest.mark.parametrize("step", range(9))
def test_resuming_at_any_step_continues_the_same_stream(shards, one_rank, step):
    assert steps(shards, step, 9 - step, world=2, micro_batch_size=3) == one_rank[step:]


def test_seeds_are_keyed_by_sample_and_repeat(shards):
    (step,) = steps(shards, 4, 1, repeated_sampling=2, micro_batch_size=4)  # the first step of epoch 1
    assert [row[2] for row in step] == [mask_seed(3, 1, row[0], number % 2) for number, row in enumerate(step)]
    assert [row[0] for row in step[::2]] == [row[0] for row in step[1::2]]
    pixels = [row[3] for row in step]
    assert sum(first != second for first, second in zip(pixels[::2], pixels[1::2], strict=True)) >= 10


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "shards"
    make_shards(folder, (6, 6), frames=20, height=48, width=64)
    return folder


def test_repeats_have_the_pixels_of_clips_that_are_decoded_alone(long_videos):
    clip = ClipConfig(frames=8, size=16, stride=2)
    data = DataConfig(shards=str(long_videos), repeated_sampling=4)
    decoder = SampleDecoder(open_reader(long_videos), data, clip)
    requests = [ClipRequest(row, 3, 0, row // 4, row % 4) for row in range(8)]
    together, alone = (SharedBufferPool((8, 8, 16, 16, 3), np.uint8).take() for _ in range(2))
    assert decoder.decode_into(requests, together, None) == [
        decoder.decode_into([request], alone, None)[0] for request in requests
    ]
    assert (together.array == alone.array).all()
    decoder.close()


@pytest.mark.parametrize("sampling", ["dense", "segments"])
def test_repeats_may_share_their_frames(long_videos, sampling):
    clip, options = ClipConfig(frames=8, size=16, stride=2), {"sampling": sampling, "repeated_sampling": 3}
    pixels = {}
    for shared in (False, True):
        (step,) = steps(long_videos, 0, 1, clip=clip, share_frames=shared, micro_batch_size=4, **options)
        pixels[shared] = [np.frombuffer(row[3], np.uint8).reshape(8, 16, 16, 3) for row in step]
    numbers = {shared: [frame_numbers(one) for one in clips] for shared, clips in pixels.items()}
    assert [numbers[True][row] for row in range(36)] == [numbers[False][row // 3 * 3] for row in range(36)]
    assert sum(numbers[False][row] != numbers[False][row // 3 * 3] for row in range(36)) > 12
    # green and blue encode the place, the same for all frames: each clip has its own crop, as without sharing
    for shared, own in zip(pixels[True], pixels[False], strict=True):
        assert np.abs(shared[..., 1:].astype(int) - own[..., 1:]).max() <= 4
    places = [one[0, 0, 0, 1:].tolist() for one in pixels[True][:3]]
    assert len({tuple(place) for place in places}) == 3


def test_another_seed_gives_other_clips(shards, one_rank):
    assert steps(shards, 0, 1, seed=4)[0] != one_rank[0]


class TestPixels:
    """Frame numbers and crops are read back from the pixels."""

    @pytest.mark.parametrize(("stored", "stride", "step"), [(1, 3, 3), (1, 1, 1), (2, 4, 2)])
    def test_frames_stand_at_the_asked_stride(self, tmp_path, stored, stride, step):
        make_shards(tmp_path / "s", (20,), frames=20, height=48, width=64, stride=stored)
        clip = ClipConfig(frames=4, size=32, stride=stride)
        with loader(tmp_path / "s", batch=20, micro_batch_size=20, clip=clip) as ours:
            found = np.array([frame_numbers(one.numpy()) for one in next(ours.batches(0)).clips])
        assert (np.diff(found, axis=1) == step).all()
        assert len(set(found[:, 0].tolist())) > 5
        assert found.min() >= 0
        assert found.max() <= 19

    def test_a_short_video_repeats_its_end(self, tmp_path):
        make_shards(tmp_path / "s", (4,), frames=4, height=48, width=64)
        clip = ClipConfig(frames=4, size=32, stride=2)
        with loader(tmp_path / "s", batch=4, micro_batch_size=4, clip=clip) as ours:
            assert [frame_numbers(one.numpy()) for one in next(ours.batches(0)).clips] == [[0, 2, 2, 2]] * 4

    @pytest.mark.parametrize("flip", [True, False])
    def test_crop_and_flip_are_one_for_the_whole_clip(self, tmp_path, flip):
        make_shards(tmp_path / "s", (40,), frames=4, height=96, width=128)
        clip = ClipConfig(frames=4, size=32, stride=1)
        with loader(tmp_path / "s", batch=40, micro_batch_size=40, clip=clip, flip=flip) as ours:
            clips = next(ours.batches(0)).clips.numpy().astype(float)
        right = np.median(clips[..., -2, 2] - clips[..., 1, 2], axis=2)  # (B, T) rise of blue from left to right
        down = np.median(clips[:, :, -2, :, 1] - clips[:, :, 1, :, 1], axis=2)
        assert (np.ptp(right, axis=1) < 8).all()
        assert (np.ptp(down, axis=1) < 8).all()
        assert (down > 0).all()
        assert ((right < 0).sum(axis=0) > 10).all() == flip
        assert ((right < 0).any()) == flip
        share = np.abs(right).mean(axis=1) / 240 * down.mean(axis=1) / 240 * (32 / 29) ** 2
        assert (share > 0.4).all()  # crop_scale begins at 0.5
        assert (share < 1.1).all()
        assert np.ptp(share) > 0.3

    @pytest.mark.parametrize("crop", ["random_resized", "multi_scale"])
    def test_the_kind_of_crop_matters(self, tmp_path, crop):
        make_shards(tmp_path / "s", (64,), frames=2, height=96, width=128)
        with loader(tmp_path / "s", batch=64, micro_batch_size=64, crop=crop, flip=False) as ours:
            clips = next(ours.batches(0)).clips.numpy().astype(float)
        left = np.median(clips[:, 0, :, 0, 2], axis=1)
        # 13 places of 10 shapes at 0, 1/4 .. 4/4 of what is left over, against any place
        assert (len(np.unique(left.round())) > 30) == (crop == "random_resized")

    def test_read_clip_is_the_middle(self, tmp_path):
        make_shards(tmp_path / "s", (2, 2), frames=11, height=48, width=64)
        clip = ClipConfig(frames=4, size=32, stride=2)
        for folder in (tmp_path / "s", str(tmp_path / "s")):
            found = read_clip(open_reader(folder), 3, clip)
            assert found.shape == (4, 32, 32, 3)
            assert found.dtype == torch.uint8
            assert frame_numbers(found.numpy()) == [2, 4, 6, 8]
        across, down = found[0, 16, :, 2].float(), found[0, :, 16, 1].float()
        assert across[0].item() == pytest.approx(240 * 8 / 64, abs=6)
        assert across[-1].item() == pytest.approx(240 * 56 / 64, abs=6)
        assert (down[0].item(), down[-1].item()) == (pytest.approx(0, abs=6), pytest.approx(240, abs=6))


def change_index(shard, old, new):
    path = index_path(shard)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


class TestCorruption:
    @pytest.fixture
    def damaged(self, tmp_path):
        """Shards in which sample 5 has a flipped byte in each frame."""
        make_shards(tmp_path / "s", COUNTS)
        shard = tmp_path / "s" / "toy-000000.tar"
        _, columns = load_index(shard)
        content = shard.read_bytes()[columns["jpgs_offset"][5] :]
        offsets = np.frombuffer(content, "<u4", 4)
        for offset in offsets:
            flip_byte(shard, columns["jpgs_offset"][5] + int(offset) + 300)
        return tmp_path / "s"

    @pytest.mark.parametrize(("world", "workers"), [(1, 0), (5, 0), (1, 2)])
    def test_the_next_of_the_window_replaces_it(self, shards, damaged, world, workers, caplog):
        (whole,) = steps(shards, 0, 1, batch=50, micro_batch_size=10)
        (found,) = steps(damaged, 0, 1, batch=50, micro_batch_size=10, world=world, workers=workers)
        position = [row[0] for row in whole].index(5)
        replacement = EpochSampler(COUNTS, seed=3, epoch=0, shuffle_window_shards=2).next_in_window(position)
        assert replacement != position
        assert found == [*whole[:position], whole[replacement], *whole[position + 1 :]]
        assert "sample 5 is corrupt" in caplog.text
        assert "toy-000000.tar:00000005: checksum" in caplog.text

    def test_it_is_counted_by_reason_once_a_run(self, damaged):
        with loader(damaged, batch=50, micro_batch_size=10) as ours:
            stream = ours.batches(0)
            for _ in range(15):  # three epochs
                next(stream)
            assert ours.corrupt == {"checksum": 1}

    def test_past_the_budget_the_run_stops(self, damaged):
        with (
            loader(damaged, batch=50, micro_batch_size=10, max_corrupt_samples=0) as ours,
            pytest.raises(UserError, match=r"1 samples of .* \(checksum 1; .*00000005.* data.max_corrupt_samples=0"),
        ):
            list(itertools.islice(ours.batches(0), 5))

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda shard: shard.unlink(), "missing_shard"),
            (lambda shard: shard.write_bytes(shard.read_bytes()[:-600]), "truncated_shard"),
            (lambda shard: shard.write_bytes(shard.read_bytes() + b"more"), "replaced_shard"),
            (lambda shard: change_index(shard, '"format_version":2', '"format_version":9'), "bad_index"),
            (lambda shard: change_index(shard, '"jpgs_offset":[', '"jpgs_offset":[9'), "bad_index"),
            (lambda shard: change_index(shard, '"frames":[', '"frames":[1'), "bad_index"),
            (lambda shard: change_index(shard, '"label":[', '"label":[1'), "bad_index"),
        ],
    )
    def test_a_lost_shard_stops_the_run(self, tmp_path, damage, reason):
        make_shards(tmp_path / "s", COUNTS)
        # one thread, so that the sixth bad sample is also the last that is met
        with loader(tmp_path / "s", batch=50, micro_batch_size=10, max_corrupt_samples=5, threads=1) as ours:
            damage(tmp_path / "s" / "toy-000002.tar")
            with pytest.raises(UserError, match=f"6 samples.*{reason} 6.*toy-000002.tar"):
                list(itertools.islice(ours.batches(0), 5))

    def test_a_lost_shard_within_the_budget_is_replaced(self, tmp_path):
        make_shards(tmp_path / "s", COUNTS)
        with loader(tmp_path / "s", batch=50, micro_batch_size=10) as ours:
            (tmp_path / "s" / "toy-000004.tar").unlink()
            found = [row[0] for batch in itertools.islice(ours.batches(0), 5) for row in rows(batch)]
            assert ours.corrupt == {"missing_shard": 9}
        assert set(found) == set(range(41))

    def test_a_window_without_a_readable_sample_stops_the_run(self, tmp_path):
        make_shards(tmp_path / "s", (3, 3))
        with loader(tmp_path / "s", batch=6, micro_batch_size=6, shuffle_window_shards=1) as ours:
            (tmp_path / "s" / "toy-000001.tar").unlink()
            with pytest.raises(UserError, match="all samples of a shuffle window"):
                next(ours.batches(0))

    def test_a_reader_of_single_clips_gets_no_replacement(self, damaged):
        with pytest.raises(CorruptSample, match="00000005: checksum"):
            read_clip(open_reader(damaged), 5, CLIP)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"batch": 60},
                r"holds 50 samples, fewer than one step takes \(.*=60\): set optim.global_batch_size=8 ",
            ),
            ({"world": 5}, "optim.global_batch_size=12 is not divisible by engine.micro_batch_size=2 x 5 ranks"),
            ({"micro_batch_size": 5}, "engine.micro_batch_size=5"),
        ],
    )
    def test_impossible_batches(self, shards, options, message):
        with pytest.raises(ValueError, match=message):
            loader(shards, **options)

    def test_impossible_stride(self, tmp_path):
        make_shards(tmp_path / "s", (12,), stride=2)
        with pytest.raises(UserError, match=r"clip.stride=1 is not a multiple of the shards' stride, 2"):
            loader(tmp_path / "s")

    def test_windows_shorter_than_a_clip(self, tmp_path):
        made = make_shards(tmp_path / "s", (12,))
        span = (CLIP.frames - 1) * CLIP.stride + 1
        for window, fits in ((span - 1, False), (span, True)):
            encoder = replace(made.encoder, clips=2, window=window)
            write_manifest(tmp_path / "s", replace(made, encoder=encoder))
            with nullcontext() if fits else pytest.raises(UserError, match=f"make shards with --window {span}"):
                loader(tmp_path / "s").close()

    def test_flow_that_is_not_stored(self, shards):
        with pytest.raises(UserError, match="hold no optical flow: make them with --flow"):
            ClipLoader(DataConfig(shards=str(shards)), CLIP, seed=0, batch=2, micro_batch_size=2, flow=True)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_flow_that_a_sample_lacks(self, tmp_path, workers):
        made = make_shards(tmp_path / "s", (12,))
        write_manifest(tmp_path / "s", replace(made, encoder=replace(made.encoder, flow_distance=1)))
        data = DataConfig(shards=str(tmp_path / "s"), workers=workers)
        with (
            ClipLoader(data, CLIP, seed=0, batch=2, micro_batch_size=2, flow=True) as ours,
            pytest.raises(UserError, match="holds no optical flow: make the shards with --flow"),
        ):
            next(ours.batches(0))


class TestState:
    def test_it_survives_json_and_continues(self, shards):
        with loader(shards) as ours, loader(shards, world=3, micro_batch_size=4, rank=2, threads=4) as other:
            state = json.loads(json.dumps(ours.state(6)))
            assert (state["step"], state["epoch"]) == (6, 1)
            check_same_stream(state, other.identity)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": 9}, "seed was 3 and is 9"),
            ({"batch": 24}, "batch was 12 and is 24"),
            ({"shuffle_window_shards": 3}, "shuffle_window_shards was 2 and is 3"),
            ({"seed": 9, "batch": 24}, "seed was 3 and is 9; batch was 12 and is 24"),
        ],
    )
    def test_what_differs_is_named(self, shards, options, message):
        with loader(shards) as ours, loader(shards, **options) as other, pytest.raises(UserError, match=message):
            check_same_stream(ours.state(1), other.identity)

    def test_other_shards_are_refused(self, shards, tmp_path):
        make_shards(tmp_path / "s", COUNTS[::-1])
        with loader(shards) as ours, loader(tmp_path / "s") as other, pytest.raises(UserError, match="shards was"):
            check_same_stream(ours.state(1), other.identity)

    def test_another_order_version_is_refused(self, shards):
        with loader(shards) as ours, pytest.raises(UserError, match="order_version was 0 and is 1"):
            check_same_stream(ours.state(1) | {"order_version": 0}, ours.identity)


@pytest.mark.slow
def test_augmented_clips_are_the_same_from_threads_and_processes(shards):
    changes = {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "repeated_sampling": 2}
    plain = steps(shards, 1, 2, repeated_sampling=2)
    by_threads, by_processes = (steps(shards, 1, 2, workers=workers, **changes) for workers in (0, 2))
    assert by_threads == by_processes
    pixels = [[clip[-1] for step in found for clip in step] for found in (plain, by_threads)]
    assert sum(a != b for a, b in zip(*pixels, strict=True)) > len(pixels[0]) // 2
