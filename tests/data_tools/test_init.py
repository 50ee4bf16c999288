"""`motionmae init`: its config loads and fits, its commands run as printed, and its choices follow from the videos."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.annotations import VideoRecord
from data_tools.init.choices import choose_finetuning, choose_pretraining, shard_options
from data_tools.init.survey import Machine, Part, Survey, look_at_videos
from data_tools.init.write import to_yaml
from motionmae.commands.app import main
from motionmae.config import Config, load_config
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.data.open_shards import load_manifest
from motionmae.planning.gpus import GPUS, USABLE
from motionmae.planning.memory import predict_memory
from tests.data_tools.videos import draw_frames, write_video


def make_videos(folder: Path, classes: dict[str, int], frames: int = 20) -> Path:
    for name, count in classes.items():
        for number in range(count):
            write_video(folder / name / f"{name}, {number}.mp4", draw_frames(frames, 64, 48))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_videos(tmp_path / "my videos", {"turn left": 6, "turn right": 5, "wait": 1})


def test_its_commands_run_as_printed(folder: Path, capsys: pytest.CaptureFixture[str]):
    """The shards and the plan here; pre-training, fine-tuning and test on real videos in docs/own_videos.md."""
    assert main(["init", str(folder)]) == 0
    printed = capsys.readouterr().out
    commands = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  motionmae")]
    assert [command[0] for command in commands] == [
        "shards", "shards", "pretrain", "report", "finetune", "test", "predict", "export",
    ]  # fmt: skip
    for command in commands[:2]:
        assert main([*command, "--workers", "1"]) == 0
    train, held_out = (load_manifest(Path("data/my_videos") / split) for split in ("train", "val"))
    assert (train.samples, held_out.samples) == (10, 2)  # one of five held out of each class; the only one is kept
    assert train.class_names == ("turn left", "turn right", "wait")
    config = load_config(commands[2][-1])
    assert config.clip.frames * config.clip.stride <= 20
    assert steps_per_epoch(config, train.samples) >= 4
    assert accumulation_steps(config, 1) >= 1
    assert not config.data.flip
    assert config.run_folder == Path("runs/my_videos")
    finetuning = load_config(commands[4][-1])
    assert finetuning.finetune.init == "runs/my_videos"
    assert not finetuning.data.flip
    assert main(["plan", "--config", commands[2][-1]]) == 0
    assert main(["init", str(folder)]) == 2  # nothing that a user may have edited is written over
    assert "exists" in capsys.readouterr().err


def test_lists_folders_and_flat_folders(tmp_path: Path):
    split = make_videos(tmp_path / "split/train", {"a": 3, "b": 3}).parent
    make_videos(split / "val", {"a": 1})
    survey = look_at_videos(split)
    assert len(survey.train.videos) == 6
    assert survey.held_out is not None
    assert survey.held_out.options == ("--split", "val")
    flat = make_videos(tmp_path / "flat", {"": 10})
    survey = look_at_videos(flat)
    assert (len(survey.train.videos), survey.class_names) == (8, ())
    assert survey.train.list_file.startswith("path\n")


def survey_of(
    videos: int, frames: int, fps: float = 30, sides: tuple[int, int] = (256, 340), names: str = "ab"
) -> Survey:
    of_two_classes = [VideoRecord(f"{n}.mp4", Path(f"{n}.mp4"), n) for n in range(2)]
    records = tuple((of_two_classes * (videos // 2 + 1))[:videos])
    return Survey(
        Part(records, ()), Part(records[: max(1, videos // 5)], ()), tuple(names), (frames,) * 9, fps, *sides, 0
    )


def config_of(survey: Survey, machine: Machine, tmp_path: Path) -> tuple[Config, Config]:
    recipe = choose_pretraining(survey, machine, "mine", "data/train", "data/val")
    finetuning = choose_finetuning(survey, machine, "finetune_mine", "data/train", "data/val", recipe)
    found = []
    for name, one in (("mine", recipe), ("finetune_mine", finetuning)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(one, "heading"))
        found.append(load_config(str(path)))
        lines = [line for line in path.read_text().splitlines() if not line.startswith(("#", "base:"))]
        assert all(len(line) <= 120 for line in lines)
        assert [line for line in lines if not line.endswith(":") and "  # " not in line] == []  # every value says why
    return found[0], found[1]


@pytest.mark.parametrize("videos", [2, 3, 9, 40, 500, 9_000, 240_000])
@pytest.mark.parametrize("gpu", ["", "t4-16", "a5000-24", "h100-80"])
@pytest.mark.parametrize("gpus", [1, 3, 8])
def test_every_size_of_set_and_machine_gets_a_config_that_trains(videos: int, gpu: str, gpus: int, tmp_path: Path):
    card = GPUS[gpu] if gpu else None
    machine = Machine(16, gpus, card.gigabytes, card.part) if card else Machine(2)
    ranks = machine.gpus or 1
    if videos < 2 * ranks:
        return
    config, finetuning = config_of(survey_of(videos, 120), machine, tmp_path)
    for one in (config, finetuning):
        assert steps_per_epoch(one, videos, ranks) >= min(4, videos // (2 * ranks))
        accumulation_steps(one, ranks)
    if card:
        assert predict_memory(config, ranks).peak <= USABLE * card.gigabytes * 1e9
        assert config.launch.gpus_per_node == gpus


def test_strides_by_hand(tmp_path: Path):
    cpu, gpu = Machine(2), Machine(16, 1, 80, "A100")
    # 16 frames over 2.1 s of 30 frames a second are 4 apart, as on Kinetics; of 12 a second 1.6: 2, as on SSv2
    assert config_of(survey_of(99, 300), gpu, tmp_path)[0].clip.stride == 4
    assert config_of(survey_of(99, 300, fps=12), gpu, tmp_path)[0].clip.stride == 2
    assert config_of(survey_of(99, 300), cpu, tmp_path)[0].clip.stride == 8  # 8 frames
    assert config_of(survey_of(99, 40), gpu, tmp_path)[0].clip.stride == 2  # 15 x 2 + 1 = 31 of 40 frames
    short = config_of(survey_of(99, 10), gpu, tmp_path)[0].clip
    assert (short.frames, short.stride) == (8, 1)
    assert config_of(survey_of(99, 40, sides=(120, 160)), gpu, tmp_path)[0].clip.size == 112
    assert shard_options(survey_of(9, 30 * 600, names=""), gpu) == ["--segment-seconds", "10"]


def test_the_stride_is_for_the_frames_that_three_quarters_of_the_videos_have(tmp_path: Path):
    survey = replace(survey_of(99, 300), frames=(300, 20, 100, 40, 10, 200, 80, 60))
    assert (survey.short_frames, survey.median_frames) == (40, 70)  # 6 of 8 have 40; 70 is between 60 and 80
    clip = config_of(survey, Machine(16, 1, 80, "A100"), tmp_path)[0].clip
    assert (clip.frames, clip.stride) == (16, 2)  # 15 x 2 + 1 = 31 of 40 frames
    assert replace(survey, frames=(7,)).short_frames == 7


@pytest.mark.parametrize(
    ("cores", "gpus", "workers", "cores_a_task"),
    [(64, 8, 6, 8), (16, 1, 10, 16), (12, 1, 10, 12), (11, 1, 9, 11), (13, 4, 1, 3), (4, 8, 1, 1)],
)
def test_the_ranks_of_a_machine_share_its_cores(cores: int, gpus: int, workers: int, cores_a_task: int, tmp_path: Path):
    """Two cores of each share are for the rank itself, and at most ten decode."""
    for config in config_of(survey_of(99, 300), Machine(cores, gpus, 80, "A100"), tmp_path):
        assert (config.data.workers, config.launch.cpus_per_task) == (workers, cores_a_task)
        assert (config.launch.ntasks_per_node, config.launch.gpus_per_node) == (gpus, gpus)


def test_wrong_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    write_video(tmp_path / "one/a.mp4", draw_frames(4))
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / f"broken/{number}.mp4").write_bytes(b"\0" * 100_000)
    for name, words in (("empty", "holds no video"), ("one", "at least two"), ("broken", "can be read"),
                        ("missing", "not a folder")):  # fmt: skip
        assert main(["init", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert main(["init", str(tmp_path / "one"), "--name", "../x"]) == 2


def test_shards_never_lie_in_the_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = make_videos(Path("data/mine"), {"a": 3, "b": 3})
    (tmp_path / "work").mkdir()
    for where, videos, out in ((tmp_path, mine, "data/mine_shards"), (tmp_path, Path("data"), "../data_shards"),
                               (tmp_path / "data/mine", Path(), "../mine_shards")):  # fmt: skip
        monkeypatch.chdir(where)
        assert main(["init", str(videos)]) == 0
        commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if "shards make" in line]
        assert [command[command.index("--out") + 1] for command in commands] == [f"{out}/train", f"{out}/val"]
        assert main([*commands[0], "--workers", "1"]) == 0
        capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["init", "data", "--name", "other", "--data", "data/shards"]) == 2
    assert "--data data/shards lies in the folder of videos data" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "work")
    assert main(["init", "..", "--name", "other"]) == 2
    assert "give another folder with --data" in capsys.readouterr().err
