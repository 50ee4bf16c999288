"""A .beton of a stranger, whose checksums fit."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.make_beton import write_beton
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, SampleDecoder
from motionmae.data.ffcv.format import row_checksum
from motionmae.data.ffcv.reader import BetonReader
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shared_buffers import SharedBuffer
from motionmae.errors import UserError
from tests.data.made_shards import make_shards, needs_ffcv

pytestmark = needs_ffcv
CLIP = ClipConfig(frames=4, size=32, stride=2)
FUZZ = settings(derandomize=True, max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Shards of four samples of 48 x 64 pixels, and their .beton."""
    folder = tmp_path_factory.mktemp("foreign")
    make_shards(folder / "s", (4,), frames=12, height=48, width=64)
    write_beton(folder / "s", load_manifest(folder / "s"), folder / "a.beton")
    return folder


def change_row(whole, path, **values) -> None:
    """Copy the file to ``path``, with other values in the row of sample 1 and a checksum that fits."""
    content = bytearray((whole / "a.beton").read_bytes())
    reader = BetonReader(whole / "a.beton", load_manifest(whole / "s"))
    row = reader._rows[1].copy()
    place = content.index(row.tobytes())
    for name, value in values.items():
        row[name] = value
    start, size = int(row["table"]), 8 * int(row["frames"]) + 4 * int(row["windows"])
    row["crc"] = row_checksum(row, bytes(content[start : start + size]))
    content[place : place + len(row.tobytes())] = row.tobytes()
    path.write_bytes(content)


def read(whole, path):
    """Read the frames of a clip of sample 1."""
    beton = BetonReader(path, load_manifest(whole / "s"))
    frames, _ = ClipRequest(0, 3, 0, 1, 0).cut(beton.read_meta(1), DataConfig(), CLIP)
    return beton.read_frames(1, frames)


@pytest.mark.parametrize(("height", "width"), [(192, 256), (96, 128), (24, 32), (48, 65), (47, 64)])
def test_a_row_that_is_not_the_size_of_its_jpegs(whole, tmp_path, height, width):
    change_row(whole, tmp_path / "x.beton", height=height, width=width)
    decoder = SampleDecoder(BetonReader(tmp_path / "x.beton", load_manifest(whole / "s")), DataConfig(), CLIP)
    clips = np.zeros((1, 4, 32, 32, 3), np.uint8)
    (fault,) = decoder.decode_into([ClipRequest(0, 3, 0, 1, 0)], SharedBuffer(clips, 0), None)
    assert isinstance(fault, CorruptSample)
    assert fault.reason is Reason.DECODE


@pytest.mark.long
def test_such_a_row_counts_against_the_budget(whole, tmp_path):
    change_row(whole, tmp_path / "x.beton", height=192, width=256)
    data = DataConfig(shards=str(whole / "s"), beton=str(tmp_path / "x.beton"), max_corrupt_samples=0)
    with (
        ClipLoader(data, CLIP, seed=3, batch=4, micro_batch_size=4) as loader,
        pytest.raises(UserError, match=r"1 samples .* are corrupt \(decode 1; .* data.max_corrupt_samples=0"),
    ):
        list(itertools.islice(loader.batches(0), 2))


@pytest.mark.parametrize(
    "values",
    [
        *({"frames": value} for value in (0, 2**31, 2**32 - 1)),
        *({"windows": value} for value in (0, 2, 2**32 - 1)),
        *({"height": value, "width": value} for value in (0, 2**31, 2**32 - 1)),
        *({"stride": value} for value in (0, 2, 3)),
        {"label": -2},
        *({"fps": value} for value in (-0.1, -1, float("nan"), float("inf"))),
        *({"ptr": value} for value in (2**63, 2**64 - 1)),
        *({"size": value} for value in (0, 2**63, 2**64 - 1)),
        *({"table": value} for value in (0, 2**63, 2**64 - 1)),
    ],
    ids=str,
)
def test_a_wrong_row_is_a_corrupt_sample(whole, tmp_path, values):
    change_row(whole, tmp_path / "x.beton", **values)
    with pytest.raises(CorruptSample):
        read(whole, tmp_path / "x.beton")


def test_fuzz_of_a_row(whole, tmp_path):
    names = ("ptr", "size", "table", "frames", "windows", "height", "width", "stride")
    numbers = st.integers(0, 100) | st.sampled_from([2**10, 2**16, 2**20, 2**31, 2**32 - 1])

    @FUZZ
    @given(values=st.dictionaries(st.sampled_from(names), numbers, min_size=1, max_size=3))
    def check(values):
        change_row(whole, tmp_path / "x.beton", **values)
        try:
            frames = read(whole, tmp_path / "x.beton")
        except CorruptSample:
            return
        assert len(frames) == CLIP.frames

    check()


def test_fuzz_of_the_header(whole, tmp_path):
    content = (whole / "a.beton").read_bytes()
    manifest = load_manifest(whole / "s")
    places = st.integers(0, 1200) | st.integers(0, 40)

    @FUZZ
    @given(changes=st.dictionaries(places, st.integers(0, 255), min_size=1, max_size=8), cut=st.integers(0, 40))
    def check(changes, cut):
        changed = bytearray(content[: len(content) - cut * len(content) // 40 if cut < 5 else len(content)])
        for place, value in changes.items():
            if place < len(changed):
                changed[place] = value
        (tmp_path / "x.beton").write_bytes(changed)
        try:
            beton = BetonReader(tmp_path / "x.beton", manifest)
            for sample in range(4):
                beton.read_meta(sample)
        except (UserError, CorruptSample):
            return

    check()
