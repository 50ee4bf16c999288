"""Output files are recognised in every format, and foreign files are not."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest

from data_tools.preview import write_picture
from data_tools.stats import draw_classes
from motionmae.errors import UserError
from motionmae.evaluation.features import as_npz, as_parquet
from motionmae.evaluation.inference import Results
from motionmae.evaluation.video_writer import write_gif, write_mp4, write_png
from motionmae.outputs import archive_of, containing, json_with, output_argument, refuse_foreign, signed

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
