"""Tables and files of the commands, from results written out here."""

import argparse
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from motionmae.commands import app, checkpoints, davis, plan, predict
from motionmae.commands import test as test_command
from motionmae.commands.doctor import data as doctor_data
from motionmae.commands.doctor import gpu as doctor_gpu
from motionmae.config import Config
from motionmae.data.profile_loader import LoaderProfile
from motionmae.errors import UserError
from motionmae.evaluation.davis.metrics import Score
from motionmae.evaluation.multiview_test import Report
from motionmae.evaluation.predictor import Prediction, Timeline, join
from motionmae.gpu_checks.catalogue import BY_NAME
from motionmae.gpu_checks.check import CheckResult, Setting, Verdict
from motionmae.json_text import load_json
from motionmae.planning.estimate import Assumptions, compare_choices, make_plan
from motionmae.planning.gpus import find_gpu
from motionmae.runs.checkpoint_inspect import CheckpointStatus, InspectedCheckpoint

NAMES = ("run", "sit", "jump")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that were printed, without frames, one space between words."""
    printed = capsys.readouterr().out
    plain = re.sub("[\u2500-\u257f]", " ", printed)
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]


def a_prediction(video: str = "a.mp4") -> Prediction:
    scores = np.array([0.125, 0.625, 0.25], np.float32)
    return Prediction(video, NAMES, scores, np.zeros((6, 3), np.float32))


def a_timeline(*, timed: bool = True) -> Timeline:
    seconds = np.array([[0.0, 1.0], [2.0, 3.3333333]]) if timed else np.full((2, 2), math.nan)
    scores = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], np.float32)
    return Timeline("b.mp4", NAMES, np.array([[0, 28], [32, 60]]), seconds, scores)


def test_the_best_classes_come_first_and_equal_ones_in_their_order():
    found = a_prediction()
    assert found.label == "sit"
    assert found.top(2) == [("sit", 0.625), ("jump", 0.25)]
    assert a_timeline().top(2) == [[("run", 0.5), ("sit", 0.25)], [("jump", 0.75), ("run", 0.125)]]
    mean = a_timeline().mean
    assert mean.scores.tolist() == [0.3125, 0.1875, 0.5]
    np.testing.assert_allclose(np.exp(mean.logits), a_timeline().scores, rtol=1e-5)
    whole = join([a_timeline(), a_timeline()])
    assert (whole.frames.shape, whole.seconds.shape, whole.scores.shape) == ((4, 2), (4, 2), (4, 3))


def test_records_of_a_video_and_of_a_timeline():
    record = predict._record(Path("a.mp4"), a_prediction(), 2)
    best = [{"class": "sit", "score": 0.625}, {"class": "jump", "score": 0.25}]
    assert record == {"video": "a.mp4", "classes": best, "views": 6}
    record = predict._record(Path("b.mp4"), a_timeline(), 1)
    assert record == {
        "video": "b.mp4",
        "classes": [{"class": "jump", "score": 0.5}],
        "windows": [
            {"frames": [0, 28], "seconds": [0.0, 1.0], "classes": [{"class": "run", "score": 0.5}]},
            {"frames": [32, 60], "seconds": [2.0, 3.333333], "classes": [{"class": "jump", "score": 0.75}]},
        ],
    }
    assert [window["seconds"] for window in predict._record(Path("b.mp4"), a_timeline(timed=False), 1)["windows"]] == [
        None, None,
    ]  # fmt: skip


def test_predictions_as_csv_and_as_a_table(capsys: pytest.CaptureFixture[str]):
    broken = {"video": "c.mp4", "problem": "torn", "classes": []}
    records = [predict._record(Path("a.mp4"), a_prediction(), 2), broken]
    assert predict._as_csv(records, 2).splitlines() == [
        "video,start,end,problem,class1,score1,class2,score2", "a.mp4,,,,sit,0.625,jump,0.25", "c.mp4,,,torn",
    ]  # fmt: skip
    predict._print(records, timeline=False)
    assert lines(capsys) == ["video score class", "a.mp4 0.625 sit", "0.250 jump", "not read: torn"]
    timed, frames = (predict._record(Path("b.mp4"), a_timeline(timed=timed), 2) for timed in (True, False))
    assert predict._as_csv([timed], 2).splitlines()[1:] == [
        "b.mp4,0.0,1.0,,run,0.5,sit,0.25", "b.mp4,2.0,3.333333,,jump,0.75,run,0.125",
    ]  # fmt: skip
    assert predict._as_csv([frames], 1).splitlines()[1] == "b.mp4,0,28,,run,0.5,sit,0.25"
    predict._print([timed], timeline=True)
    assert lines(capsys) == [
        "video from to score class", "b.mp4 0.00 s 1.00 s 0.500 run", "2.00 s 3.33 s 0.750 jump",
    ]  # fmt: skip
    predict._print([frames, broken], timeline=True)
    assert lines(capsys)[1:] == ["b.mp4 frame 0 frame 28 0.500 run", "frame 32 frame 60 0.750 jump", "not read: torn"]
    predict._print([broken], timeline=False)
    assert lines(capsys) == ["not read: torn"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clips": 0}, "--clips must be at least 1, not 0"),
        ({"crops": 0}, "--crops must be at least 1"),
        ({"timeline": True, "every": math.inf}, "--every must be a positive number"),
        ({"timeline": True, "every": math.nan}, "--every must be a positive number"),
        ({"timeline": True, "every": 0.0}, "--every must be a positive number"),
        ({"picture": Path("x.png")}, "--every and --picture are for a timeline"),
        ({"timeline": True, "crops": 3}, "a window of a timeline has one clip and one crop"),
        ({"timeline": True, "every": 0.1, "picture": Path("x.png")}, ""),
        ({"clips": 5, "crops": 3}, ""),
    ],
)
def test_arguments_of_predict(changes: dict[str, Any], text: str):
    given = {"top": 1, "clips": 1, "crops": 1, "every": None, "timeline": False, "picture": None, **changes}
    arguments = argparse.Namespace(**given)
    if text:
        with pytest.raises(UserError, match=text):
            predict._check(arguments)
    else:
        predict._check(arguments)


def test_scores_of_davis(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    scores = {
        "a_1": {"J": Score(0.5, 0.25, 0.125), "F": Score(0.75, 1.0, 0.5)},
        "b_1": {"J": Score(0.25, 0.75, 0.375), "F": Score(0.25, 0.5, -0.5)},
    }
    key: dict[str, object] = {"weights": "w", "inputs": "i", "settings": {"features": "pixels"}}
    davis._report(scores, key, Path("masks"), tmp_path / "s.json")
    assert lines(capsys) == [
        "masks", "J F", "a_1 0.5000 0.7500", "b_1 0.2500 0.2500", "Mean 0.3750 0.5000", "Recall 0.5000 0.7500",
        "Decay 0.2500 0.0000", "J&F-Mean 0.4375 over 2 objects",
    ]  # fmt: skip
    found = load_json(tmp_path / "s.json", dict[str, Any])
    assert found["per_object"] == {"a_1": {"J": 0.5, "F": 0.75}, "b_1": {"J": 0.25, "F": 0.25}}
    assert (found["J-Recall"], found["F-Decay"], found["masks"]) == (0.5, 0.0, "masks")
    assert found["settings"] == {"features": "pixels"}
    davis._report(scores, None, Path("masks"), tmp_path / "s.json")
    assert load_json(tmp_path / "s.json", dict[str, Any])["settings"] == {}


def test_figures_of_a_test(capsys: pytest.CaptureFixture[str]):
    few: dict[str, float | None] = {"run": 50.0, "sit": None}
    report = Report(12.345, 50.0, 40.0, 10, 2, "5 x 3", 180.5, 2707.5, 86_200_000, few)
    test_command._print(report, {"7": "torn"}, Path("out"))
    assert lines(capsys) == [
        "top-1 12.35 %", "top-5 50.00 %", "mean of the classes 40.00 %", "videos 10, of which 2 could not be read",
        "views 5 x 3 of 180.5 GFLOPs: 2708 GFLOPs a video", "parameters 86.2 M", "run 50.0 %", "sit none tested",
        "not read: video 7: torn", "predictions, confusion matrix, figures: out",
    ]  # fmt: skip
    for classes, shown in ((20, 20), (21, 0)):
        many: dict[str, float | None] = {f"class{number}": 1.0 for number in range(classes)}
        test_command._print(Report(1, 2, 3, 4, 0, "1 x 1", 1, 1, 1, many), {}, Path("out"))
        assert sum(line.startswith("class") for line in lines(capsys)) == shown


def test_checkpoints_are_listed_with_what_a_resume_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(checkpoints.time, "time", lambda: 1000.0)
    complete, damaged = CheckpointStatus.COMPLETE, CheckpointStatus.DAMAGED
    found = [
        InspectedCheckpoint(Path("/dev/shm/x"), CheckpointStatus.PARTIAL, "", 9, 1_500_000, 990.0, {}),
        InspectedCheckpoint(Path("step-8"), damaged, "torn", 8, 2_000_000, 940.0, {"world": 4, "zero_stage": 2}),
        InspectedCheckpoint(Path("step-6"), complete, "", 6, 10, 0.0, {"attempt": "x"}, resumes=True, best="top1 82.5"),
        InspectedCheckpoint(Path("step-4"), complete, "", 4, 10, 0.0, {"world": 1}),
    ]
    checkpoints._show(found, 1)
    assert lines(capsys) == [
        "checkpoint step size age written by status",
        "in memory 9 1.5 MB 10 s partial",
        "step-8 8 2.0 MB 1 min 00 s 4 ranks, ZeRO 2 damaged: torn",
        "step-6 6 0.0 MB 16 min 40 s ? ranks, attempt x complete <- a resume loads this one "
        "<- the best by validation (top1 82.5), --step best",
        "step-4 4 0.0 MB 16 min 40 s 1 ranks complete",
    ]
    assert checkpoints._figures(found[1])["name"] == "step-8"
    assert "folder" not in checkpoints._figures(found[1])
    assert checkpoints._deletion(Path("a/step-1"), "") == "step-1"
    assert checkpoints._deletion(Path("a/step-1"), "/b") == "the link step-1 (not its target /b)"


def a_plan() -> tuple[Config, Any]:
    """A run on two nodes of two GPUs, with 400 videos."""
    config = Config(name="big").updated(
        {
            "launch.nodes": 2, "launch.ntasks_per_node": 2, "launch.gpus_per_node": 2, "launch.cpus_per_task": 6,
            "optim.global_batch_size": 64, "engine.micro_batch_size": 8, "data.repeated_sampling": 2,
            "optim.epochs": 10, "optim.warmup_epochs": 1,
        }
    )  # fmt: skip
    return config, make_plan(config, videos=400)


def test_an_estimate_in_words():
    config, found = a_plan()
    rows = dict(plan._model_rows(found, config))
    whole = (found.encoder_parameters + found.decoder_parameters) / 1e6
    parts = f"encoder {found.encoder_parameters / 1e6:.1f} M, decoders {found.decoder_parameters / 1e6:.1f} M"
    assert rows["parameters"] == f"{whole:.1f} M ({parts})"
    assert rows["as a classifier"].startswith(f"{found.classifier_parameters / 1e6:.1f} M with 400 classes, ")
    assert rows["ranks"] == "4 (2 nodes x 2)"
    assert rows["clips a step"] == "128 (8 videos x 2 clips x 4 ranks x 2 accumulation)"
    assert rows["memory a GPU"].startswith(f"{found.memory.peak / 1e9:.1f} GB at its peak (ZeRO stage ")
    assert rows["work a clip"].startswith(f"{found.flops_per_clip / 1e9:.4g} GFLOP forward and backward, ")
    assert rows["steps"] == "60: 10 epochs of 6 (400 videos)"
    assert "unknown" in dict(plan._model_rows(make_plan(config), config))["steps"]
    bare = config.updated({"task": "finetune", "launch.gpus_per_node": 0})
    rows = dict(plan._model_rows(make_plan(bare, videos=400), bare))
    assert rows["parameters"].endswith(" M without a classification layer")
    assert "memory a rank" in rows


def test_times_at_an_assumed_speed():
    config, found = a_plan()
    gpu = find_gpu("a100-80")  # 312 TFLOP/s
    assumed = Assumptions(gpu, 0.5, 100.0)
    speed = 4 * 312e12 * 0.5 / (found.flops_per_clip + found.recomputed_flops_per_clip)
    rows = dict(plan._time_rows(found, config, assumed))
    assert rows["clips a second"] == f"{speed:.0f}, {speed / 4:.1f} a GPU, at 0.5 MFU (given) of 312 TFLOP/s"
    days = 60 * 128 / speed / 86_400
    assert rows["time"] == f"{days:.3g} days on 4, {days * 4:.3g} GPU-days at this speed"
    cores = math.ceil(speed / 2 / 100)  # of a node; clips have 16 frames
    assert rows["loader cores a node"] == f"{cores} at 100 clips of 16 frames a second and core; the job requests 12"
    wider = config.updated({"launch.nodes": 3, "optim.global_batch_size": 96})  # as many ranks on each node
    assert dict(plan._time_rows(make_plan(wider), wider, assumed))["loader cores a node"].endswith("requests 12")
    unknown = dict(plan._time_rows(make_plan(config), config, assumed))["time"]
    assert unknown == f"{1e6 / speed * 4 / 86_400:.2f} GPU-days for a million clips at this speed"


def test_the_verdict_names_what_fits():
    config, found = a_plan()
    assumed = Assumptions(find_gpu("a100-80"), 0.5)
    choices = compare_choices(config, assumed.gpu)
    (chosen,) = (choice for choice in choices if plan._is_chosen(choice, config))
    assert chosen.checkpointing == config.model.activation_checkpointing

    def verdict(largest: int, videos: int) -> str:
        case = config.updated({"engine.micro_batch_size": videos})
        others = [replace(choice, largest_micro_batch=largest) for choice in choices]
        return plan._verdict(others, case, found, assumed)

    assert verdict(8, 8).endswith(" GB a GPU, fits; the largest that fits and divides optim.global_batch_size=64 is 8")
    assert "fits; " in verdict(100, 16)
    assert verdict(100, 16).endswith(" is 16")
    assert verdict(7, 8).endswith(
        ", does NOT fit 80 GB; the largest that fits and divides optim.global_batch_size=64 is 4"
    )
    assert verdict(0, 8).endswith("; choose more checkpointing, a higher ZeRO stage or a larger GPU")


def test_choices_are_compared_in_gigabytes():
    config, found = a_plan()
    assumed = Assumptions(find_gpu("a100-80"), 0.5)
    choices = compare_choices(config, assumed.gpu)
    table = plan._choice_table(choices, found, config, assumed)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    assert columns[0] == [str(stage) for stage in (0, 1, 2, 3) for _ in range(3)]
    assert columns[1][:3] == ["none", "every_n", "full"]
    memory = choices[5].memory
    assert [column[5] for column in columns[2:8]] == [
        f"{part / 1e9:.2f}" for part in (memory.parameters, memory.gradients, memory.optimizer, memory.buffers,
                                         memory.activations, memory.peak)
    ]  # fmt: skip
    assert columns[9] == [str(choice.largest_micro_batch) for choice in choices]
    assert columns[8] == ["yes" if choice.largest_micro_batch >= 8 else "no" for choice in choices]
    assert columns[10][0] == "+0%"
    assert [row.style for row in table.rows].count("bold") == 1
    assert [row.end_section for row in table.rows] == [False, False, True] * 4
    assert "at micro-batch 8; fits: into " in str(table.title)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--videos", "0"], "--videos must be a positive, finite number, not 0"),
        (["--loader-speed", "nan"], "--loader-speed must be"),
        (["--step-seconds", "inf"], "--step-seconds must be"),
        (["--preemptions", "-1"], "--preemptions must be at least 0, not -1"),
        (["--preemptions", "inf"], "--preemptions must be at least 0"),
        (["--mfu", "1.1"], "--mfu must be at most 1, not 1.1"),
    ],
)
def test_numbers_of_plan_are_checked(words: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    assert app.main(["plan", "--config", "demo", *words]) == 2
    assert text in capsys.readouterr().err


def test_the_profile_of_a_loader(capsys: pytest.CaptureFixture[str]):
    found = LoaderProfile(100.0, 1, 25_000.0, 12.5, 2.0, 9.375, corrupt=0)
    doctor_data._show(found, (80.0, 101.0))
    assert lines(capsys) == [
        "loading of one rank", "clips a second 100.0 with 1 decoder", "read 2.5 MB/s, 25.0 kB a clip",
        "CPU a clip 12.50 ms, of which decoding takes 75%", "clips a second a core 80.0",
        "a GPU of 80 clips/s needs 1 core: this loader has enough", "a GPU of 101 clips/s needs 2 cores",
    ]  # fmt: skip
    doctor_data._show(LoaderProfile(100.0, 2, 25_000.0, 12.5, 2.0, 13.0, corrupt=3), (100.0,))
    shown = lines(capsys)
    assert "clips a second 100.0 with 2 decoders" in shown
    assert "CPU a clip 12.50 ms, of which decoding takes 100%" in shown
    assert "unreadable samples 3: `motionmae shards verify` names them" in shown
    assert shown[-1] == "a GPU of 100 clips/s needs 2 cores: this loader has enough"


def test_checks_of_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COLUMNS", "200")
    name = next(
        name
        for name, check in BY_NAME.items()
        if check.shown and not {".", "gpu", "device"} & {*check.shown.split(), *check.shown}
    )
    key = BY_NAME[name].shown.split()[0]
    setting = Setting(device="cuda", quick=True, folder=tmp_path, ranks=2)
    results = [
        CheckResult(name=name, verdict=Verdict.PASSED, seconds=1.6, figures={key: 3, "gpu": "H100"}),
        CheckResult(name=name, verdict=Verdict.FAILED, seconds=0.2, problem="too slow", figures={key: {}}),
    ]
    doctor_gpu._show(results, setting)
    shown = lines(capsys)
    assert shown[0] == "checks on H100"
    assert f"{name} passed 2 {key} 3" in shown
    assert f"{name} failed 0 too slow" in shown
    assert shown[-1] == "1 passed, 1 failed"
    doctor_gpu._report(results[0])
    doctor_gpu._report(results[1])
    assert lines(capsys) == [f"passed {name} (2 s)", f"failed {name} (0 s): too slow"]
    on_cpu = Setting(device="cpu", quick=False, folder=tmp_path)
    assert doctor_gpu._device(results, on_cpu) == "the CPU"
    assert doctor_gpu._device([], setting) == "the GPU"
    found = doctor_gpu._json(results, ["advice"], setting)
    assert {key: found[key] for key in ("device", "quick", "ranks", "advice")} == {
        "device": "H100", "quick": True, "ranks": 2, "advice": ["advice"],
    }  # fmt: skip
    assert [check["verdict"] for check in found["checks"]] == ["passed", "failed"]


@pytest.mark.parametrize(("given", "device", "ranks"), [("3", "cuda", 3), ("3", "cpu", 3), ("", "cpu", 1)])
def test_ranks_of_the_checks(given: str, device: str, ranks: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", given)
    assert doctor_gpu._count_ranks(device) == ranks


def test_other_ranks_of_torchrun_check_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "1")
    assert app.main(["doctor", "gpu", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == ""
    assert app.main(["doctor", "gpu", "--device", "cpu", "--minutes", "0"]) == 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["plan", "--config", "demo", "--vidoes", "3"], "did you mean --videos?"),
        (["plan", "--config", "demo", "--optim.epochs=3"], "write optim.epochs=VALUE without dashes for a value"),
        (["plan", "--config", "demo", "--epochs", "3"], "write SECTION.epochs=VALUE without dashes for a value"),
        (["watch"], "see `motionmae watch --help`"),
        (["watch", "runs/x", "--zzz"], "see `motionmae watch --help`"),
        (["predict", "w", "v", "--step", "last"], "'last' is neither a number of steps nor `best`"),
    ],
)
def test_a_wrong_argument_has_a_remedy(words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        app.main(words)
    error = capsys.readouterr().err
    assert remedy in error
    assert (error[:7], error.count("\n")) == ("error: ", 1)


def test_the_step_of_weights_is_a_number_or_the_best():
    for text, step in (("7", 7), ("best", "best")):
        _, arguments = app.parse(["predict", "w", "v", "--step", text])
        assert arguments.step == step
    _, arguments = app.parse(["predict", "w", "v"])
    assert (arguments.step, arguments.top, arguments.clips, arguments.crops, arguments.settings) == (None, 5, 1, 1, [])
