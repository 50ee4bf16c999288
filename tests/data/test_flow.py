import numpy as np
import pytest
import torch

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_sampling import Crop
from motionmae.data.flow import decode_flow, encode_flow
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardWriter, load_index
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError
from tests.data.made_shards import flip_byte, frame_numbers, make_shards, meta, picture

META = SampleMeta("a.tar", "0", 0, 25.0, frames=1, stride=1, height=96, width=128, windows=(0,), has_flow=True)


def ramp(height=96, width=128):
    """A field that is linear in place: u = x / 8 - 3, v = 5 - y / 16."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack((x / 8 - 3, 5 - y / 16), axis=-1)


def decoded(content, crop, size):
    out = np.full((size, size, 2), np.nan, np.float16)
    decode_flow(content, META, crop, out)
    return out.astype(np.float32)


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("crop", [Crop(0, 0, 96, 128), Crop(20, 30, 64, 64), Crop(8, 16, 60, 90)])
@pytest.mark.parametrize("flip", [False, True])
def test_vectors_follow_the_crop(reduction, crop, flip):
    size = 32
    crop = Crop(crop.top, crop.left, crop.height, crop.width, flip)
    found = decoded(encode_flow(ramp(), reduction), crop, size)
    x = crop.left + (np.arange(size) + 0.5) * crop.width / size - 0.5  # stored pixel that each clip pixel shows
    y = crop.top + (np.arange(size) + 0.5) * crop.height / size - 0.5
    u, v = (x / 8 - 3) * size / crop.width, (5 - y / 16) * size / crop.height
    if flip:
        u = -u[::-1]
    inner = slice(4, -4) if (crop.height, crop.width) == (96, 128) else slice(None)  # at the rim the grid ends
    assert np.abs(found[..., 0] - u)[inner, inner].max() < 0.02
    assert np.abs(found[..., 1] - v[:, None])[inner, inner].max() < 0.02


def test_a_field_is_small_and_large_vectors_are_kept():
    field = np.zeros((256, 340, 2), np.float32)
    assert len(encode_flow(field)) < 500
    noise = np.random.default_rng(0).normal(0, 3, (256, 340, 2)).astype(np.float32)
    assert len(encode_flow(noise)) < 22_000
    field = np.full((96, 128, 2), (300.0, -9000.0), np.float32)
    assert np.unique(decoded(encode_flow(field), Crop(0, 0, 96, 96), 96).reshape(-1, 2), axis=0).tolist() == [
        [300, -512]
    ]


@pytest.mark.parametrize("content", [b"", b"abc", encode_flow(ramp())[:-5], b"\x01\x00" + encode_flow(ramp())[2:]])
def test_a_damaged_field_is_corrupt(content):
    with pytest.raises(CorruptSample) as caught:
        decoded(content, Crop(0, 0, 96, 96), 32)
    assert caught.value.reason == Reason.CHECKSUM


def make_flow_shards(folder):
    """Six samples of ten frames; the flow of the n-th, from 1, is (n, -2 n) everywhere."""
    jpegs = [picture(number, 32, 48) for number in range(10)]
    fields = [encode_flow(np.full((32, 48, 2), (number, -2 * number), np.float32)) for number in range(1, 11)]
    with ShardWriter(folder / "a.tar") as shard:
        for number in range(6):
            shard.write(str(number), jpegs, meta(10, 32, 48), fields)
    settings = EncoderSettings(short_side=32, jpeg_quality=95, flow_distance=1)
    write_manifest(folder, Manifest("toy", "train", ("none",), settings, (shard.entry,)))
    return folder


@pytest.fixture
def shards(tmp_path):
    return make_flow_shards(tmp_path)


@pytest.mark.parametrize("flip", [False, True])
def test_the_loader_reads_the_flow_of_the_clips_frames(shards, flip):
    data = DataConfig(shards=str(shards), crop="multi_scale", flip=flip, repeated_sampling=3)
    clip = ClipConfig(frames=4, size=32, stride=2)
    with ClipLoader(data, clip, seed=0, batch=6, micro_batch_size=6, flow=True) as loader:
        batch = next(loader.batches(0))
    assert batch.flow.shape == (18, 4, 32, 32, 2)
    assert batch.flow.dtype == torch.float16
    signs = set()
    for one, flow in zip(batch.clips.numpy(), batch.flow.float().numpy(), strict=True):
        frames = np.array(frame_numbers(one)) + 1
        assert (np.ptp(flow, axis=(1, 2)) == 0).all()
        u, v = flow[:, 0, 0].T
        scale = -v / (2 * frames)  # 32 / crop height: 1 to 32 / 21
        assert np.ptp(scale) < 0.01
        assert 0.99 < scale.mean() < 1.6
        assert (np.abs(u) / frames > 0.99).all()
        mirrored = np.median(one[..., -1, 2].astype(int) - one[..., 0, 2]) < 0
        assert (np.sign(u) == (-1 if mirrored else 1)).all()
        signs.add(mirrored)
    assert signs == ({False, True} if flip else {False})


def test_without_asking_there_is_no_flow(shards):
    with ClipLoader(DataConfig(shards=str(shards)), ClipConfig(size=32), seed=0, batch=2, micro_batch_size=2) as loader:
        assert next(loader.batches(0)).flow is None


def test_a_flipped_byte_is_found(shards):
    offset = load_index(shards / "a.tar")[1]["flow_offset"][0]
    flip_byte(shards / "a.tar", offset + 4 * 11 + 12)  # in the field of frame 0
    with pytest.raises(CorruptSample) as caught:
        decode_flow(open_reader(shards).read_flow(0, [0])[0], META, Crop(0, 0, 32, 32), np.empty((8, 8, 2), np.float16))
    assert caught.value.reason == Reason.CHECKSUM


def test_a_sample_without_flow_says_so(tmp_path):
    make_shards(tmp_path / "s", (2,))
    with pytest.raises(UserError, match="holds no optical flow: make the shards with --flow"):
        open_reader(tmp_path / "s").read_flow(1, [0])
