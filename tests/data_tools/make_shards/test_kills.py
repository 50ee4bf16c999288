"""A retry that replaces a shard, killed before each file system operation. No stored sample is ever lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.decode import DecodedVideo, QuarantineReason, UndecodableVideo
from data_tools.make_shards import write
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import check_size, load_index
from tests.commands.functions import make_shards as main
from tests.fault_injection import kill_points

SHARD = "train-000000.tar"


class QuickDecoder:
    """Decoder without a process, for files whose content is their number of frames."""

    def __init__(self, *_: object) -> None: ...

    def decode(self, path: Path) -> Iterator[DecodedVideo]:
        frames = int(path.read_text())
        if frames == 0:
            raise UndecodableVideo(QuarantineReason.UNREADABLE, "no frames")
        times = [float(number) for number in range(frames)]
        yield DecodedVideo([b"jpeg"] * frames, times, 1.0, 48, 64, [0], frames, 0, [])

    def stop(self) -> None: ...


def make(folder: Path, *more: str) -> int:
    write.DecodeWorker = QuickDecoder
    words = ["folder", "--videos", str(folder / "videos"), "--out", str(folder / "out"), "--split", "train"]
    return main([*words, "--workers", "1", "--samples-per-shard", "3", *more])


def retry(folder: Path) -> None:
    assert make(folder, "--retry") == 0


def frames_found(folder: Path) -> list[int]:
    entry, columns = load_index(folder / "out" / SHARD)
    check_size(folder / "out" / SHARD, entry)
    return sorted(columns["frames"])


@pytest.fixture
def seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards without one video, which is repaired now."""
    monkeypatch.setattr(write, "DecodeWorker", QuickDecoder)
    folder = tmp_path / "seed"
    for number, frames in enumerate((5, 0, 7)):
        (folder / "videos/a").mkdir(parents=True, exist_ok=True)
        (folder / f"videos/a/{number}.mp4").write_text(str(frames))
    make(folder)
    assert frames_found(folder) == [5, 7]
    (folder / "videos/a/1.mp4").write_text("6")
    return folder


@pytest.mark.long
def test_a_killed_retry_keeps_every_sample(seed: Path, tmp_path: Path):
    outcomes = []
    for kill in kill_points(retry, seed, tmp_path / "work"):
        outcomes.append(frames_found(kill.folder))
        retry(kill.folder)
        assert frames_found(kill.folder) == [5, 6, 7], kill
        assert load_manifest(kill.folder / "out").samples == 3, kill
        names = {path.name for path in (kill.folder / "out").iterdir()}
        assert not [name for name in names if name.endswith((".tmp", ".new"))], (kill, names)
    change = outcomes.index([5, 6, 7])
    assert outcomes == [[5, 7]] * change + [[5, 6, 7]] * (len(outcomes) - change)
    assert 0 < change < len(outcomes) - 1
