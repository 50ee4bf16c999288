"""Output folders that would mix with the input, and the words of the progress bar."""

from pathlib import Path

import pytest
from rich.console import Console

from data_tools.reporting import progress_bar, refuse_inside
from motionmae.__main__ import main
from motionmae.errors import UserError


@pytest.mark.parametrize("out", ["videos", "videos/shards", "linked", "linked/deep/shards", "videos/../videos/a"])
def test_shards_are_not_written_among_the_videos(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"no video")
    (tmp_path / "linked").symlink_to(videos)
    assert main(["shards", "make", "folder", "--videos", str(videos), "--out", str(tmp_path / out)]) == 2
    assert "would mix with its files: choose a folder beside it" in capsys.readouterr().err
    assert [path.name for path in videos.iterdir()] == ["a.mp4"]


def test_a_folder_beside_the_videos_is_taken(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    refuse_inside(tmp_path / "videos_shards", {"--videos": tmp_path / "videos", "--annotations": None})
    refuse_inside(tmp_path, {"--videos": tmp_path / "videos"})
    with pytest.raises(UserError, match=r"--out .* lies in the input"):
        refuse_inside(tmp_path / "videos/x", {"the input": tmp_path / "videos"})


def test_the_bar_says_which_time_is_which():
    bar = progress_bar()
    bar.add_task("videos", total=10, completed=5)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(bar.get_renderable())
    assert "0:00:00 so far, -:--:-- left" in captured.get()
