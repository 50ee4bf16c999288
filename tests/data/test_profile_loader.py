import json

import pytest

from data_tools.make_beton import write_beton
from data_tools.make_beton.clips import FrameForm
from motionmae.__main__ import main
from motionmae.data.open_shards import load_manifest
from motionmae.data.profile_loader import LoaderProfile
from tests.data.made_shards import flip_byte, make_shards, needs_ffcv

SETTINGS = [
    "data.workers=2",
    "engine.micro_batch_size=2",
    "optim.global_batch_size=8",
    "clip.frames=2",
    "clip.size=32",
    "clip.stride=1",
]


def doctor(shards, *more, extra=()):
    overrides = [f"data.shards={shards}", *SETTINGS, *extra]
    return main(["doctor", "data", "--seconds", "0.3", *more, "--config", "vitb_ssv2", *overrides])


def test_it_says_what_loading_costs(tmp_path, capsys):
    make_shards(tmp_path / "s", (10, 10), height=256, width=340)
    assert doctor(tmp_path / "s", "--gpu-clips", "1e5", "--json", str(tmp_path / "found.json")) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["clips_per_second"] > 0
    assert found["decoders"] == 2
    assert 0 < found["decode_share"] <= 1
    assert found["cpu_ms"] > 0.5 * (found["read_ms"] + found["decode_ms"])  # the workers' time is counted
    stored = (tmp_path / "s" / "toy-000000.tar").stat().st_size / 10  # 4 frames a sample, of which a clip takes 2
    assert found["bytes_per_clip"] == pytest.approx(stored / 2, rel=0.3)
    assert found["cores"]["100000"] > 2
    assert "a GPU of 100000 clips/s needs" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
@needs_ffcv
def test_a_beton_of_pixels(tmp_path):
    make_shards(tmp_path / "s", (10,), height=128, width=170)
    write_beton(tmp_path / "s", load_manifest(tmp_path / "s"), tmp_path / "a.beton", form=FrameForm(raw=True))
    options = ["--gpu-clips", "1e5", "--json", str(tmp_path / "found.json")]
    assert doctor(tmp_path / "s", *options, extra=[f"data.beton={tmp_path / 'a.beton'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["bytes_per_clip"] == 2 * 128 * 170 * 3
    assert found["corrupt"] == 0


def test_more_clips_need_more_cores():
    found = LoaderProfile(800, 4, 1, cpu_ms=5, read_ms=0.5, decode_ms=4, corrupt=0)
    assert (found.clips_per_core, found.decode_share) == (200, 0.8)
    assert (found.cores(400), found.cores(401)) == (2, 3)


def test_damage_is_told_and_missing_shards_are_a_sentence(tmp_path, capsys):
    make_shards(tmp_path / "s", (10,), frames=2)
    for offset in range(1000, (tmp_path / "s" / "toy-000000.tar").stat().st_size // 2, 300):
        flip_byte(tmp_path / "s" / "toy-000000.tar", offset)
    assert doctor(tmp_path / "s") == 0
    assert "unreadable samples" in capsys.readouterr().out
    assert doctor(tmp_path / "gone") == 2
    assert "does not exist" in capsys.readouterr().err
