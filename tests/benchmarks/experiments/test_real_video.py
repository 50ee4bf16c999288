"""Baselines on real videos: what the features see, and that test videos choose nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import simplejpeg

from benchmarks.experiments.real_video.cli import group_of, main
from benchmarks.experiments.real_video.hand_made import BINS, CELLS, HEIGHT, WIDTH, appearance, motion
from benchmarks.experiments.real_video.readout import (
    VALIDATION,
    Part,
    accuracy,
    given,
    halves,
    leave_one_out,
    logistic_regression,
    nearest_neighbours,
    random_groups,
)
from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.errors import UserError
from tests.data.made_shards import meta


def bar(position: float, level: float = 1.0) -> np.ndarray:
    """A soft vertical bar of 20 pixels, with its left edge at a column."""
    columns = np.arange(WIDTH, dtype=np.float32)
    row = np.clip(columns - position, 0, 1) * np.clip(position + 20 - columns, 0, 1) * level
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.mark.parametrize(("speed", "direction"), [(1.0, 0.0), (-1.0, np.pi)])
def test_normal_flow_points_in_the_direction_of_motion(speed, direction):
    frames = np.stack([bar(30 + speed * number) for number in range(9)])
    values = motion(frames[:-1], frames[1:])
    assert len(values) == 2 * CELLS * CELLS * BINS + 9
    shares = values[: CELLS * CELLS * BINS].reshape(CELLS, CELLS, BINS).sum((0, 1))
    assert shares[int((direction + np.pi) / (2 * np.pi) * BINS) % BINS] > 0.99


def test_reversed_videos_look_the_same_and_move_otherwise():
    frames = np.stack([bar(30 + number) for number in range(9)])
    assert np.allclose(appearance(frames), appearance(frames[::-1]), atol=1e-6)
    forward, backward = motion(frames[:-1], frames[1:]), motion(frames[::-1][:-1], frames[::-1][1:])
    assert np.abs(forward - backward).max() > 0.1


def random_part(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 5)).astype(np.float32)
    return features, (features[:, :3] + random.normal(size=(count, 3))).argmax(1)


def test_logistic_regression_is_the_optimum_that_scipy_finds():
    (features, labels), (test, _) = random_part(0), random_part(1, 200)
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    inputs = ((features - mean) / deviation).astype(np.float64)
    for decay in (0.01, 1.0):

        def loss(flat: np.ndarray, decay: float = decay) -> float:
            weights, bias = flat[:15].reshape(5, 3), flat[15:]
            logs = scipy.special.log_softmax(inputs @ weights + bias, axis=1)
            return float(-logs[np.arange(60), labels].mean() + decay / 2 * np.square(weights).sum())

        best = scipy.optimize.minimize(loss, np.zeros(18), method="BFGS").x
        expected = (((test - mean) / deviation) @ best[:15].reshape(5, 3) + best[15:]).argmax(1)
        assert (logistic_regression(features, labels, test, decay) == expected).mean() > 0.99


def test_neighbours_vote_and_the_lowest_class_wins_a_tie():
    features = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
    labels = np.array([1, 0, 0, 2])
    test = np.array([[0.1], [9.0]], np.float32)
    assert nearest_neighbours(features, labels, test, 1).tolist() == [1, 2]
    assert nearest_neighbours(features, labels, test, 3).tolist() == [0, 0]


def test_groups_stay_whole_and_test_videos_choose_no_setting():
    groups = [f"recording {number // 3}" for number in range(30)]
    held = random_groups(groups, VALIDATION, 0)
    assert 0 < held.sum() < 30
    assert all(len({held[number] for number in range(30) if groups[number] == name}) == 1 for name in set(groups))
    assert any((random_groups(groups, VALIDATION, seed) != held).any() for seed in (1, 2))
    with pytest.raises(UserError, match="one group"):
        random_groups(["a"] * 5, VALIDATION, 0)
    features, labels = random_part(2, 30)
    seen: list[int] = []

    def classify(inputs: np.ndarray, _: np.ndarray, others: np.ndarray, setting: float) -> np.ndarray:
        seen.append(len(others))
        return np.full(len(others), int(setting))

    test = Part(*random_part(3, 7), groups=["t"] * 7)
    frequent = int(np.bincount(labels[held]).argmax())
    top1, (setting,) = accuracy(classify, (0, 1, 2), given(Part(features, labels, groups), test, 0), 0)
    assert (labels[held] == setting).sum() == (labels[held] == frequent).sum()
    assert seen == [held.sum()] * 3 + [7]
    assert top1 == pytest.approx(100 * (test.labels == setting).mean())


def numbered_part(start: int, groups: str) -> Part:
    """Videos whose only feature is their number, and whose label is that of their group."""
    features = np.arange(start, start + len(groups), dtype=np.float32)[:, None]
    return Part(features, np.array(["abcd".index(name) for name in groups]), list(groups))


def test_each_group_is_left_out_once_and_never_trains_or_chooses_for_itself():
    parts = numbered_part(0, "aabbc"), numbered_part(5, "cdad")
    folds = leave_one_out(*parts, 0)
    tested = [float(number) for _, test in folds for number in test.features[:, 0]]
    assert sorted(tested) == list(range(9))
    assert [set(test.groups) for _, test in folds] == [{"a"}, {"b"}, {"c"}, {"d"}]
    for train, test in folds:
        assert len(train.labels) + len(test.labels) == 9
        assert not set(train.groups) & set(test.groups)

    def only_knows_its_training_videos(_: np.ndarray, labels: np.ndarray, others: np.ndarray, __: float) -> np.ndarray:
        return np.full(len(others), labels.max())  # class d for all, and class c where d is left out

    top1, settings = accuracy(only_knows_its_training_videos, (0, 1), folds, 0)
    assert top1 == 0
    assert settings == [1] * 4


def test_halves_divide_the_groups_of_all_videos_and_a_seed_draws_them():
    parts = numbered_part(0, "aabbc"), numbered_part(5, "cdad")
    drawn = set()
    for seed in range(8):
        ((train, test),) = halves(*parts, seed)
        assert len(set(train.groups)) == len(set(test.groups)) == 2
        assert sorted([*train.features[:, 0], *test.features[:, 0]]) == list(range(9))
        drawn.add(tuple(sorted(set(test.groups))))
    assert len(drawn) > 1


def test_the_path_of_a_video_names_its_recording():
    jhmdb = re.compile(r"([^/]*?)_[a-z_]+_[ufhl]_[cn]m_np\d")
    names = ["clap/A_Film__clap_u_nm_np1_fr_med_0.mp4", "clap/A_Film__clap_u_cm_np1_ba_med_17.mp4"]
    assert len({group_of(name, jhmdb) for name in names}) == 1
    assert group_of("other.mp4", jhmdb) == group_of("other.mp4", None) == "other.mp4"


def make_shards(folder: Path, count: int) -> None:
    """Bars that move right (class 0) and left (class 1) from the same places."""
    folder.mkdir()
    with ShardWriter(folder / "bars-000000.tar") as writer:
        for number in range(count):
            speed = 1 if number % 2 == 0 else -1
            level = 0.7 + 0.02 * (number // 2 % 10)
            frames = [bar(30 + speed * (frame - 4.5) + number // 2 % 3, level) for frame in range(10)]
            pictures = [np.ascontiguousarray(255 * frame, np.uint8) for frame in frames]
            jpegs = [simplejpeg.encode_jpeg(picture, quality=95) for picture in pictures]
            facts = meta(10, HEIGHT, WIDTH, label=number % 2, class_name="", source=f"{number}.mp4")
            writer.write(f"{number:08d}", jpegs, facts)
    manifest = Manifest("bars", "all", ("right", "left"), EncoderSettings(HEIGHT, 95), (writer.entry,))
    write_manifest(folder, manifest)


def test_motion_tells_directions_apart_and_appearance_does_not(tmp_path, capsys):
    make_shards(tmp_path / "train", 40)
    make_shards(tmp_path / "test", 20)
    figures = tmp_path / "figures.json"
    argv = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--seed", "0", "1"]
    assert main([*argv, "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(figures.read_text())
    rows = {row["features"]: row for row in report["rows"]}
    assert report["most_frequent"] == 50
    assert rows["motion"]["logistic_regression"]["top1"] == [100, 100]
    assert rows["motion"]["neighbours"]["top1"] == [100, 100]
    assert max(rows["appearance"]["logistic_regression"]["top1"]) < 80
    assert "| motion | 100.0 ± 0.0 (100.0, 100.0) |" in printed


def test_leave_one_out_reports_every_video_of_both_folders(tmp_path, capsys):
    make_shards(tmp_path / "train", 12)
    make_shards(tmp_path / "test", 6)
    figures = tmp_path / "figures.json"
    argv = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--group", r"(\d)\.mp4"]
    assert main([*argv, "--split", "leave-one-out", "--seed", "0", "--json", str(figures)]) == 0
    assert "18 videos, each tested once in 10 folds, 2 classes" in capsys.readouterr().out
    report = json.loads(figures.read_text())
    rows = {row["features"]: row for row in report["rows"]}
    assert report["split"] == "leave-one-out"
    assert report["most_frequent"] == 0  # without the videos of one class, the other is the more frequent
    assert rows["motion"]["neighbours"]["top1"] == [100]
    assert len(rows["motion"]["neighbours"]["settings"][0]) == 10
