import pytest

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import read_clip
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import open_reader
from tests.commands.functions import preview, verify
from tests.data_tools.make_shards.runs import make
from tests.data_tools.videos import draw_frames, psnr, set_display_matrix, write_video

CLIP = ClipConfig(frames=2, size=32, stride=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Shards of pixels and shards of JPEGs of the same videos, one of them rotated."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(3):
        write_video(folder / "v" / f"{number}.mp4", draw_frames(6, 66 + 16 * number, 48))
    set_display_matrix(folder / "v" / "2.mp4", 0, 1, -1, 0)
    assert make(folder / "v", folder / "raw", "--raw") == 0
    assert make(folder / "v", folder / "jpeg", "--quality", "100") == 0
    return folder / "raw", folder / "jpeg"


def test_pixels_are_those_of_the_jpegs_but_for_their_loss(folders):
    raw, jpeg = (open_reader(folder) for folder in folders)
    assert raw.manifest.encoder.encoding == "raw"
    shapes = set()
    for sample in range(3):
        assert raw.read_json(sample)["source"] == jpeg.read_json(sample)["source"]
        one, other = (read_clip(reader, sample, CLIP).numpy() for reader in (raw, jpeg))
        assert psnr(one, other) > 30
        meta = raw.read_meta(sample)
        shapes.add((meta.height, meta.width))
        assert len(raw.read_frames(sample, [0])[0]) == 3 * meta.height * meta.width
    assert shapes == {(48, 66), (48, 82), (98, 48)}


def test_the_loader_cuts_the_same_clips(folders):
    found = []
    for folder in folders:
        data = DataConfig(shards=str(folder))
        with ClipLoader(data, CLIP, seed=1, batch=3, micro_batch_size=3) as loader:
            found.append(next(loader.batches(0)))
    assert found[0].samples.tolist() == found[1].samples.tolist()
    assert psnr(found[0].clips.numpy(), found[1].clips.numpy()) > 30


def test_the_tools_know_pixels(folders, tmp_path):
    assert verify([str(folders[0])]) == 0
    assert preview([str(folders[0]), "--out", str(tmp_path / "sheet.png")]) == 0
