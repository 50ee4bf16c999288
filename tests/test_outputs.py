"""Output files are recognised in every format, and foreign files are not."""

import argparse
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_tools.preview import write_picture
from data_tools.stats import draw_classes
from motionmae.errors import UserError
from motionmae.evaluation.features import as_npz, as_parquet
from motionmae.evaluation.inference import Results
from motionmae.evaluation.video_writer import write_gif, write_mp4, write_png
from motionmae.outputs import (
    archive_of,
    containing,
    json_with,
    output_argument,
    refuse_foreign,
    refuse_foreign_names,
    signed,
)

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
FIGURES = {"classes": {"a": 2, "b": 1}, "dataset": "toy", "split": "train"}
RESULTS = Results({"a.mp4": np.ones(3, np.float32)}, {"b.mp4": "no frames"})


@pytest.mark.parametrize(
    "ending", [".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".pdf", ".svg", "chart.png", "strip.png"]
)
def test_a_picture_of_a_command_is_recognised(ending: str, tmp_path: Path):
    path = tmp_path / f"x{ending}"
    if ending in (".gif", ".mp4"):
        (write_gif if ending == ".gif" else write_mp4)(path, iter([PICTURE] * 3), 5)
    elif ending in (".pdf", ".svg", "chart.png"):
        draw_classes(FIGURES, path)
    elif ending == "strip.png":
        write_png(path, PICTURE)
    else:
        write_picture(path, PICTURE)
    refuse_foreign(path, signed)


@pytest.mark.parametrize("fps", [5, 10])
def test_an_animation_has_its_frames_a_second(fps: int, tmp_path: Path):
    write_gif(tmp_path / "x.gif", [PICTURE, PICTURE[::-1]], fps)
    write_mp4(tmp_path / "x.mp4", [PICTURE, PICTURE[::-1]], fps)
    with Image.open(tmp_path / "x.gif") as gif, av.open(str(tmp_path / "x.mp4")) as movie:
        assert gif.info["duration"] == 1000 / fps  # milliseconds
        assert movie.streams.video[0].average_rate == fps


def test_tables_of_features_are_recognised(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(as_npz(RESULTS))
    refuse_foreign(tmp_path / "x.npz", archive_of("names", "features", "unreadable", "reasons"))
    np.savez(tmp_path / "mine.npz", names=np.ones(2), features=np.ones(2))
    with pytest.raises(UserError, match=r"mine\.npz was not written by this command"):
        refuse_foreign(tmp_path / "mine.npz", archive_of("names", "features", "unreadable", "reasons"))
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(as_parquet(RESULTS))
    refuse_foreign(tmp_path / "x.parquet", containing("motionmae features"))


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        ('{"top1": 1, "chance": NaN, "more": []}', True),
        ('[{"top1": 1, "chance": 2}]', True),
        ("", True),
        ('{"top1": 1}', False),
        ('[{"top1": 1, "chance": 2}, {"name": "mine"}]', False),
        ('"top1 chance"', False),
        ("[" * 100_000, False),
        ("top1, chance", False),
        ("\udcff", False),
    ],
)
def test_figures_are_recognised_by_their_keys(content: str, ours: bool, tmp_path: Path):
    path = tmp_path / "figures.json"
    path.write_text(content, errors="surrogateescape")
    parse = output_argument(json_with("top1", "chance"), ".json")
    if ours:
        assert parse(str(path)) == path
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="was not written by this command: choose another name"):
            parse(str(path))


@pytest.mark.parametrize(
    ("before", "after", "ours"),
    [
        (0, 200_000, True),
        (65_528, 200_000, True),  # "motion" in the first 64 KiB, but not "motionmae"
        (200_000, 65_527, True),
        (200_000, 0, True),
        (20, 20, True),
        (100_000, 100_000, False),
    ],
)
def test_a_signature_is_found_at_both_ends_of_a_file(before: int, after: int, ours: bool, tmp_path: Path):
    path = tmp_path / "x.parquet"
    path.write_bytes(bytes(before) + b"by MAE!!" + bytes(after))
    assert containing("by MAE!!")(path) is ours
    path.write_bytes(b"by MA" + bytes(before + after) + b"E!!")
    assert not containing("by MAE!!")(path)


def test_in_a_folder_a_link_and_a_foreign_file_are_refused(tmp_path: Path):
    recognisers = {"a.json": json_with("top1"), "b.npz": archive_of("features", "names")}
    refuse_foreign_names(tmp_path, recognisers)
    (tmp_path / "a.json").write_text('{"top1": 1}')
    np.savez(tmp_path / "b.npz", names=np.ones(2), features=np.ones(2))
    refuse_foreign_names(tmp_path, recognisers)
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json was not written by this command"):
        refuse_foreign_names(tmp_path, recognisers)
    (tmp_path / "a.json").unlink()
    (tmp_path / "b.npz").rename(tmp_path / "c.npz")
    (tmp_path / "b.npz").symlink_to("c.npz")
    with pytest.raises(UserError, match=r"b\.npz is a link that this command did not make: use another folder"):
        refuse_foreign_names(tmp_path, recognisers)
    refuse_foreign(tmp_path / "b.npz", recognisers["b.npz"])  # the user names it


def test_an_argument_has_an_ending_only_if_it_must(tmp_path: Path):
    assert output_argument(signed)(str(tmp_path / "x")) == tmp_path / "x"
    with pytest.raises(argparse.ArgumentTypeError, match=r"x must end in \.png"):
        output_argument(signed, ".png")(str(tmp_path / "x"))
    (tmp_path / "x").write_text("mine")
    with pytest.raises(argparse.ArgumentTypeError, match="was not written by this command"):
        output_argument(signed)(str(tmp_path / "x"))


def test_what_has_no_content_to_lose_is_accepted(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for path in (tmp_path / "new", tmp_path / "link", tmp_path / "pipe", Path("/dev/stdout"), Path("/dev/null")):
        refuse_foreign(path, signed)
    with (tmp_path / "redirected").open("w+b") as file:
        file.write(b"printed")
        file.flush()
        refuse_foreign(Path(f"/dev/fd/{file.fileno()}"), signed)
    with pytest.raises(UserError, match="is a folder"):
        refuse_foreign(tmp_path, signed)
