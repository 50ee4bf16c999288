"""Output folders that would mix with the input, and the words of the progress bar."""

from pathlib import Path

import pytest
from rich.console import Console

from data_tools.reporting import (
    damage_as_user_error,
    name_file,
    progress_bar,
    refuse_differences,
    refuse_inside,
)
from motionmae.__main__ import main
from motionmae.data.shards.errors import CorruptSample, Reason
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


def test_settings_that_differ_are_named_in_order_and_cut():
    same = {"seed": 0, "stride": 2}
    refuse_differences(Path("out"), same, dict(same))
    with pytest.raises(UserError) as refused:
        refuse_differences(Path("out"), {**same, "z": "x" * 41, "a": 1}, {**same, "z": "y", "stride": 3})
    assert str(refused.value) == (
        f"--out out was started with a=1, stride=2, z={'x' * 40}, and this run has a=None, stride=3, z=y: "
        "use the earlier values, or choose another --out"
    )


def test_an_error_of_a_file_names_the_file(tmp_path: Path):
    message = r"absent cannot be read or written \(No such file or directory\): check its"
    with pytest.raises(UserError, match=message), name_file():
        (tmp_path / "absent").read_bytes()
    with pytest.raises(UserError, match="target cannot be read or written"), name_file():
        raise OSError(18, "Invalid cross-device link", "source", None, "target")
    with pytest.raises(BrokenPipeError), name_file():
        raise BrokenPipeError(32, "Broken pipe")
    with pytest.raises(UserError, match=r"x: .*; `motionmae shards verify` lists all damage"), damage_as_user_error():
        raise CorruptSample(Reason.CHECKSUM, "x", "changed")
    with pytest.raises(UserError, match="absent cannot be read"), damage_as_user_error():
        (tmp_path / "absent").read_bytes()


def test_the_folder_itself_and_one_in_it_are_told_apart(tmp_path: Path):
    for out, where in ((tmp_path, "is"), (tmp_path / "x", "lies in")):
        with pytest.raises(UserError, match=f"--data {out} {where} the videos {tmp_path}, and would mix"):
            refuse_inside(out, {"none": None, "the videos": tmp_path}, option="--data")
    refuse_inside(tmp_path / "x/y", {"absent": tmp_path / "x"})


def test_the_bar_is_for_terminals_on_stderr():
    bar = progress_bar()
    assert bar.console.stderr
    assert bar.disable is not bar.console.is_terminal
