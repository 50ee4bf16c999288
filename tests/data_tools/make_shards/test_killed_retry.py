"""A retry that is killed before any of its file system operations leaves every stored sample."""

import shutil
from pathlib import Path

import pytest

from data_tools.make_shards import write
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.errors import UserError
from tests.commands.functions import verify
from tests.data_tools.make_shards.in_process import InProcessDecoder
from tests.data_tools.make_shards.runs import fingerprint, make
from tests.data_tools.videos import draw_frames, write_video
from tests.fault_injection import kill_points

NAMES = ("v0.avi", "v1.avi", "v2.avi", "v3.avi", "broken.avi")  # the first shard holds v2, v3 and broken


def retry(folder: Path) -> None:
    write.DecodeWorker = InProcessDecoder
    assert make(folder / "videos", folder / "out", "--split", "train", "--retry") == 0


@pytest.fixture
def seed(tmp_path: Path, monkeypatch) -> Path:
    """Shards of four videos; broken.avi is sound by now, and the originals of v0, v2 and v3 are gone."""
    monkeypatch.setattr(write, "DecodeWorker", InProcessDecoder)
    videos = tmp_path / "seed" / "videos"
    for name in NAMES:
        write_video(videos / name, draw_frames(8), "mpeg4")
    sound = (videos / "broken.avi").read_bytes()
    (videos / "broken.avi").write_bytes(sound[:300])
    (videos / "train.csv").write_text("".join(f"{name} 0\n" for name in NAMES))
    assert make(videos, tmp_path / "seed" / "out", "--split", "train") == 0
    (videos / "broken.avi").write_bytes(sound)
    for name in ("v0.avi", "v2.avi", "v3.avi"):
        (videos / name).unlink()
    return tmp_path / "seed"


@pytest.mark.slow
def test_the_old_or_the_new_shard_is_there_at_every_point(seed: Path, tmp_path: Path, capsys):
    old = fingerprint(seed / "out")
    retry(shutil.copytree(seed, tmp_path / "whole"))
    new = fingerprint(tmp_path / "whole" / "out")
    shard = "train-000000.tar"
    assert old[shard] != new[shard]
    kills = list(kill_points(retry, seed, tmp_path / "killed"))
    assert len(kills) > 10
    for kill in kills:
        out = kill.folder / "out"
        assert fingerprint(out)[shard] in (old[shard], new[shard]), kill
        if (out / "manifest.json").exists():  # then the folder is complete
            assert load_manifest(out).samples in (4, 5)
            assert verify([str(out)]) == 0, kill
        retry(kill.folder)
        reader = open_reader(out)
        assert {reader.read_json(sample)["source"] for sample in range(reader.manifest.samples)} == {*NAMES}, kill
        assert {name: digest for name, digest in fingerprint(out).items() if not name.endswith("tmp")} == new, kill


def test_without_its_manifest_a_folder_says_what_to_do(seed: Path):
    (seed / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="again to finish it"):
        load_manifest(seed / "out")
