"""The test command on a fine-tuned run: exact on any number of ranks, resumable, counts unreadable videos."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from motionmae.__main__ import main
from motionmae.config import Config, MultiviewTestConfig
from motionmae.data.held_out.shards import match_classes
from motionmae.data.held_out.views import dense_views
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.manifest import write_manifest
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError
from motionmae.evaluation.inference import Results
from motionmae.evaluation.load_model import load_finetuned
from motionmae.evaluation.multiview_test import evaluate, labels_of
from tests.training.launch import run_ranks
from tests.training.other_run import hide_newest, read_while_it_saves
from tests.training.run_workers import run_all
from tests.training.shards import make_shards, tiny_run

CLASSES = 6


def run_command(*argv: str) -> int:
    return main(["test", *argv])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run after two epochs, tested with 2 x 3 views."""
    folder = tmp_path_factory.mktemp("trained")
    shards = make_shards(folder / "train", classes=CLASSES)
    config = tiny_run(shards, folder / "runs", optim={"epochs": 2, "base_lr": 0.5})
    config = config.updated(
        {
            "task": "finetune",
            "finetune.mixup": 0.0,
            "finetune.cutmix": 0.0,
            "test": MultiviewTestConfig(shards=str(make_shards(folder / "val", samples=8, classes=CLASSES)), clips=2),
        }
    )
    assert run_ranks(1, run_all, [config])[0] == ["FINISHED"]
    return config


def predictions(run: Path) -> list[dict[str, str]]:
    [path] = run.glob("test/*/predictions.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_any_number_of_ranks_gives_the_same_bits_and_a_second_run_only_adds_what_is_missing(
    trained: Config, tmp_path: Path
):
    run = Path(trained.output_dir) / trained.name
    reports = {}
    for world in (1, 2, 3):
        shutil.rmtree(run / "test", ignore_errors=True)
        assert run_ranks(world, run_command, str(run), "--json", str(tmp_path / f"{world}.json")) == [0] * world
        reports[world] = (json.loads((tmp_path / f"{world}.json").read_text()), predictions(run), values_of(run))
    assert reports[1] == reports[2] == reports[3]
    report, rows, values = reports[1]
    assert (report["videos"], report["missing"], len(rows), len(values)) == (16, 0, 16, 16)
    assert report["views"] == "2 x 3"

    parts = sorted(next(run.glob("test/*/parts")).glob("*.jsonl"))
    lost = parts[0].read_text().splitlines()
    parts[0].write_text("\n".join(lost[:-2]) + '\n{"item": "torn')  # killed while it wrote
    assert main(["test", str(run)]) == 0
    again = [len(path.read_text().splitlines()) for path in next(run.glob("test/*/parts")).glob("*.jsonl")]
    assert 2 in again  # only the two lost videos
    assert values_of(run) == values

    manifest, model = load_manifest(trained.test.shards), load_finetuned(run)
    for row, sample in zip(rows, range(16), strict=True):
        expected = probabilities_by_hand(model.model, open_reader(trained.test.shards, manifest), sample)
        assert float(row["probability1"]) == pytest.approx(float(expected.max()), abs=2e-6)
        assert row["class1"] == f"bar{int(expected.argmax())}"
        assert row["label"] == f"bar{sample % CLASSES}"
    right = np.mean([row["class1"] == row["label"] for row in rows])
    assert report["top1"] == pytest.approx(100 * right)
    top5 = np.mean([row["label"] in [row[f"class{n}"] for n in range(1, 6)] for row in rows])
    assert report["top5"] == pytest.approx(100 * top5)


def values_of(run: Path) -> dict[str, str]:
    rows = [json.loads(x) for p in run.glob("test/*/parts/*.jsonl") for x in p.read_text().splitlines() if x[-1] == "}"]
    assert len(rows) == len({row["item"] for row in rows})  # every video once
    return {row["item"]: row["values"] for row in rows}


def probabilities_by_hand(model: torch.nn.Module, reader: ShardReader, sample: int) -> torch.Tensor:
    """2 x 3 views, one by one."""
    meta = reader.read_meta(sample)
    chances = []
    for frames in dense_views(meta.frames, 4, 1, 2):
        jpegs = reader.read_frames(sample, frames)
        images = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for jpeg in jpegs]
        wide = np.stack([cv2.resize(image, (41, 32), interpolation=cv2.INTER_LINEAR) for image in images])
        for left in (0, 4, 9):
            clip = torch.from_numpy(np.ascontiguousarray(wide[None, :, :, left : left + 32]))
            with torch.no_grad():
                chances.append(model(clip).softmax(1)[0])
    return torch.stack(chances).mean(0)


def test_ranks_test_the_same_checkpoint_of_a_run_that_saves_meanwhile(trained: Config, tmp_path: Path):
    run = shutil.copytree(Path(trained.output_dir) / trained.name, tmp_path / "run")
    before, newest = hide_newest(run)
    found = run_ranks(2, read_while_it_saves, run, newest, run_command, str(run))
    assert found == [[before], [before]]
    assert (run / "checkpoints" / newest).is_dir()


def test_two_runs_of_one_seed_predict_the_same(tmp_path: Path):
    """Pre-training, fine-tuning with all that is random in it, test: the same bytes, and others by another seed."""
    train, val = (make_shards(tmp_path / name, shards=1, classes=CLASSES) for name in ("train", "val"))

    def predict(folder: Path, seed: int) -> bytes:
        data = {"repeated_sampling": 2, "rand_augment": "rand-m9-n4-mstd0.5-inc1", "random_erasing": 0.25}
        first = tiny_run(train, folder, optim={"epochs": 2}).updated({"seed": seed})
        second = tiny_run(train, folder, optim={"epochs": 2}, data=data)
        tuning = second.finetune.model_copy(update={"init": str(folder / "tiny")})
        views = MultiviewTestConfig(shards=str(val), clips=2)
        second = second.updated({"name": "tuned", "task": "finetune", "seed": seed, "finetune": tuning, "test": views})
        assert run_ranks(1, run_all, [first, second])[0] == ["FINISHED"] * 2
        assert main(["test", str(folder / "tuned")]) == 0
        return next((folder / "tuned").glob("test/*/predictions.csv")).read_bytes()

    one = predict(tmp_path / "a", 0)
    assert predict(tmp_path / "b", 0) == one
    assert predict(tmp_path / "c", 1) != one


def test_a_video_that_cannot_be_read_is_counted_and_named_and_nothing_takes_its_place(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards = make_shards(tmp_path / "val", samples=8, classes=CLASSES)
    content = bytearray((shards / "train-000000.tar").read_bytes())
    whole = bytes(content)
    start = content.find(b"\xff\xd8\xff", 5000)
    content[start + 300] ^= 255
    (shards / "train-000000.tar").write_bytes(content)
    run = Path(trained.output_dir) / trained.name
    figures = tmp_path / "figures.json"
    assert main(["test", str(run), "--shards", str(shards), "--clips", "1", "--json", str(figures)]) == 0
    report = json.loads(figures.read_text())
    assert (report["videos"], report["missing"], len(report["unreadable"])) == (16, 1, 1)
    assert "checksum" in next(iter(report["unreadable"].values()))
    shown = capsys.readouterr().out
    assert "16, of which 1 could not be read" in shown
    assert "not read: video" in shown
    [out] = run.glob("test/*_1x3_*")
    assert (out / "confusion.png").stat().st_size > 5000
    with (out / "predictions.csv").open(newline="") as file:
        [row] = [row for row in csv.DictReader(file) if row["problem"]]
    number = int(row["source"].removesuffix(".mp4"))
    assert (row["label"], row["class1"]) == (f"bar{number % CLASSES}", None)

    (shards / "train-000000.tar").write_bytes(whole)  # repaired: read again
    assert main(["test", str(run), "--shards", str(shards), "--clips", "1", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["missing"] == 0
    assert sum(len(path.read_text().splitlines()) for path in out.glob("parts/*.jsonl")) == 16


def test_classes_are_matched_by_name_and_unknown_ones_refused(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert match_classes(("a", "b", "c"), ("c", "a"), "x").tolist() == [2, 0]
    shards = make_shards(tmp_path / "val", classes=2)
    manifest = load_manifest(shards)
    write_manifest(shards, replace(manifest, class_names=("bar1", "juggling")))
    run = Path(trained.output_dir) / trained.name
    assert main(["test", str(run), "--shards", str(shards)]) == 2
    assert "1 classes of" in (said := capsys.readouterr().err)
    assert "'juggling'" in said
    write_manifest(shards, replace(manifest, class_names=()))
    assert main(["test", str(run), "--shards", str(shards)]) == 2
    assert "has no class" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--clips", "--crops"])
def test_a_number_of_views_that_is_zero_is_refused(
    trained: Config, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not taken for an option that is missing."""
    assert main(["test", str(Path(trained.output_dir) / trained.name), option, "0"]) == 2
    assert f"test.{option[2:]}" in capsys.readouterr().err


def test_classes_in_another_order_are_scored_by_their_names(trained: Config, tmp_path: Path):
    """Shards number the classes backwards: class k of them is class 5 - k of the model."""
    shards = make_shards(tmp_path / "val", samples=8, classes=CLASSES)
    manifest = load_manifest(shards)
    write_manifest(shards, replace(manifest, class_names=manifest.class_names[::-1]))
    run, figures = tmp_path / "run", tmp_path / "figures.json"
    shutil.copytree(Path(trained.output_dir) / trained.name, run, ignore=shutil.ignore_patterns("test"))
    assert main(["test", str(run), "--shards", str(shards), "--clips", "1", "--json", str(figures)]) == 0
    report = json.loads(figures.read_text())
    truth = [f"bar{CLASSES - 1 - sample % CLASSES}" for sample in range(16)]
    rows = predictions(run)
    hits = {
        name: [row["class1"] == name for row, own in zip(rows, truth, strict=True) if own == name] for name in truth
    }
    assert report["top1"] == pytest.approx(100 * np.mean([hit for own in hits.values() for hit in own]))
    assert report["per_class"] == pytest.approx({name: 100 * np.mean(own) for name, own in hits.items()})
    top5 = [own in [row[f"class{place}"] for place in range(1, 6)] for row, own in zip(rows, truth, strict=True)]
    assert report["top5"] == pytest.approx(100 * np.mean(top5))


def test_labels_are_numbers_of_the_models_classes(tmp_path: Path):
    reader = open_reader(make_shards(tmp_path / "val", shards=1, samples=4, classes=3))
    results = Results({name: np.zeros(3, np.float32) for name in ("0", "1", "2", "3")}, {})
    assert labels_of(reader, results, np.array([2, 0, 1])).tolist() == [2, 0, 1, 2]
    with pytest.raises(UserError, match="has no class"):
        labels_of(reader, results, np.array([2, 0]))


def test_shards_of_windows_are_refused_even_with_one_window_a_video(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards = make_shards(tmp_path / "val", classes=CLASSES)
    manifest = load_manifest(shards)
    write_manifest(shards, replace(manifest, encoder=replace(manifest.encoder, clips=1)))
    assert main(["test", str(Path(trained.output_dir) / trained.name), "--shards", str(shards)]) == 2
    assert "hold windows of videos (--clips 1), but a test needs whole videos" in capsys.readouterr().err
    data = trained.data.model_copy(update={"shards": str(shards), "sampling": "segments"})
    with pytest.raises(UserError, match="=segments needs whole videos"):
        ClipLoader(data, trained.clip, seed=0, batch=6, micro_batch_size=3)


def test_commands_refuse_runs_of_the_other_task_and_tests_without_videos(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(trained.output_dir) / trained.name
    assert main(["reconstruct", str(run)]) == 2
    assert (
        "holds a classifier (task=finetune), and this needs decoders: give weights of a pre-training"
        in capsys.readouterr().err
    )
    assert main(["report", str(run), "--held-out", trained.data.shards]) == 2
    assert "give weights of a pre-training (task=pretrain)" in capsys.readouterr().err
    assert main(["finetune", "--config", "tiny_toy"]) == 2
    assert "use `motionmae pretrain`" in capsys.readouterr().err
    bare = shutil.copytree(run, tmp_path / "bare")
    text = (bare / "config.yaml").read_text()
    (bare / "config.yaml").write_text(text.replace(trained.test.shards, "''"))
    assert main(["test", str(bare)]) == 2
    assert "test.shards is empty" in capsys.readouterr().err
    assert main(["test", str(run), "--clips", "0"]) == 2
    assert "test.clips=0 is not possible" in capsys.readouterr().err


def test_accuracy_counts_what_was_read_only(trained: Config):
    model = load_finetuned(Path(trained.output_dir) / trained.name)
    chances = {str(n): np.eye(CLASSES, dtype=np.float32)[n % 3] for n in range(6)}
    report, confusion = evaluate(model, Results(chances, {"9": "gone"}), np.array([0, 1, 1, 0, 5, 2]))
    assert (report.top1, report.missing, report.videos) == (pytest.approx(400 / 6), 1, 7)
    assert report.per_class == {"bar0": 100, "bar1": 50, "bar2": 100, "bar3": None, "bar4": None, "bar5": 0}
    assert report.mean_class == pytest.approx(62.5)
    assert confusion.sum() == 6
    assert (confusion[1, 1], confusion[1, 2], confusion[5, 1]) == (1, 1, 1)  # rows are true classes
    assert report.top5 == pytest.approx(500 / 6)  # class 5 stands at the sixth place, class 1 at the second
    assert report.gflops == pytest.approx(6 * report.gflops_per_view)  # 2 clips of 3 crops
    assert report.views == "2 x 3"
    assert report.parameters == sum(weight.numel() for weight in model.model.parameters())
    with pytest.raises(UserError, match="all videos are unreadable"):
        evaluate(model, Results({}, {"9": "gone"}), np.array([]))
