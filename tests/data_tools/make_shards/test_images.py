"""Pictures as samples of one frame: against Pillow, through the loader, and in the target of the time head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from motionmae.commands.app import main
from motionmae.config import ClipConfig, DataConfig, load_config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.models.cubes import cut_patches
from motionmae.models.targets import make_targets


def photo(seed: int, height: int = 40, width: int = 60) -> Image.Image:
    """A smooth picture, which survives chroma subsampling."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(["a.png", "b.webp", "c.bmp", "d.tiff", "e.avif", "f.jpg"]):
        kind = folder / ("cat" if number % 2 else "dog")
        kind.mkdir(exist_ok=True)
        photo(number).save(kind / name, **({"quality": 95} if name[0] in "bef" else {}))
    for orientation in (3, 6, 8):  # as phones write
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo(9).save(folder / "cat" / f"exif{orientation}.jpg", quality=95, exif=exif)
    photo(10).quantize(64).save(folder / "cat" / "palette.png")
    (folder / "cat" / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    (folder / "cat" / "false.png").write_text("#EXTM3U\n/etc/passwd\n")
    return folder


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "shards"
    command = ["shards", "make", "folder", "--videos", str(pictures), "--out", str(out), "--images", "--workers", "1"]
    assert main(command) == 0
    return out


def test_every_picture_is_stored_upright_as_pillow_shows_it(pictures: Path, shards: Path):
    reader, clip = open_reader(shards), ClipConfig(frames=4, size=40, stride=2, cube_size=8)
    stored = {}
    for sample in range(reader.manifest.samples):
        facts = reader.read_json(sample)
        assert facts["frames"] == 1
        assert (facts["height"], facts["width"]) == ((60, 40) if facts["source"][-5] in "68" else (40, 60))
        stored[facts["source"]] = (facts["class_name"], read_clip(reader, sample, clip))
    assert len(stored) == 10
    for source, (name, frames) in stored.items():
        assert name == source.split("/")[0]
        assert torch.equal(frames, frames[:1].expand_as(frames))  # the frame is repeated
        image = ImageOps.exif_transpose(Image.open(pictures / source)).convert("RGB")
        left, top = (image.width - 40) // 2, (image.height - 40) // 2
        expected = np.asarray(image.crop((left, top, left + 40, top + 40))).astype(int)
        assert np.abs(frames[0].numpy().astype(int) - expected).mean() < 12, (
            source
        )  # chroma is subsampled; a wrong turn gives 40
    rows = (shards / "quarantine.jsonl").read_text()
    assert "false.png" in rows
    assert "refused_format" in rows


def test_without_the_option_pictures_are_skipped(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["shards", "make", "folder", "--videos", str(pictures), "--out", str(tmp_path / "s"), "--workers", "1"]
    assert main(command) == 2
    assert main([*command[:2], "ucf101", *command[3:], "--split", "train1", "--images"]) == 2
    assert "--images is for the data set folder" in capsys.readouterr().err


def test_pictures_beside_videos_and_the_time_head_sees_no_motion(shards: Path, tmp_path: Path):
    from tests.data.made_shards import make_shards

    make_shards(tmp_path / "videos", (12,), frames=8, height=40, width=60)
    clip = ClipConfig(frames=4, size=32, stride=2, cube_size=8)
    sources = [{"path": str(tmp_path / "videos"), "weight": 1}, {"path": str(shards), "weight": 1}]
    config = load_config("tiny_toy").updated({"clip": clip, "target.normalize": True})
    with ClipLoader(DataConfig(shards=sources), clip, seed=0, batch=8, micro_batch_size=8) as loader:
        batch = next(loader.batches(0))
    still = batch.samples >= 12  # ids follow those of the videos
    assert still.sum() == 4
    cubes = torch.arange(clip.cubes).expand(8, -1)
    targets = make_targets(config, cut_patches(batch.clips, clip.cube_size), cubes)
    assert torch.all(targets["time"].values[still] == 0)
    assert targets["time"].values[~still].abs().mean() > 0.05
    assert targets["space"].values[still].square().mean() > 0.1
    assert load_manifest(shards).quarantined == 1
