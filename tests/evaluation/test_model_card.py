"""Lines of a model card, and code that is checked for the settings of the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from motionmae.config import Config
from motionmae.evaluation.model_card import Exported, find_figures, model_card
from motionmae.evaluation.model_card import TestFigures as Figures

NAMES = ("run", "sit")
DECODER = {"decoders.space.norm.weight": torch.zeros(1)}
ENCODER = {"encoder.norm.weight": torch.zeros(1)}


def figures(step: int | None = 7, shards: str = "val") -> dict[str, Any]:
    return {
        "step": step, "top1": 81.234, "top5": 95.5, "videos": 20, "missing": 1, "views": "5 x 3", "shards": shards,
        "per_class": {},
    }  # fmt: skip


def card(exported: Exported, kind: str = "safetensors") -> str:
    return model_card(exported, kind, "mine")


def exported(**settings: Any) -> Exported:
    return Exported(ENCODER, Config(name="tuned").updated(settings), 7, NAMES, "abc")


def test_figures_are_those_of_the_step_in_the_order_of_their_folders(tmp_path: Path):
    for name, content in {
        "c": json.dumps(figures(shards="third")), "a": json.dumps(figures(shards="first")),
        "b": json.dumps(figures(step=8)), "d": "{", "e": json.dumps({"step": 7}), "f": json.dumps(figures(step=None)),
    }.items():  # fmt: skip
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "report.json").write_text(content)
    assert [one.shards for one in find_figures(tmp_path, 7)] == ["first", "third"]
    assert [one.step for one in find_figures(tmp_path, None)] == [None]
    assert find_figures(tmp_path / "absent", 7) == ()


@pytest.mark.parametrize(
    ("names", "state", "model"),
    [
        (NAMES, ENCODER, "VideoMAEForVideoClassification"),
        ((), ENCODER, "VideoMAEModel"),
        ((), ENCODER | DECODER, "VideoMAEForPreTraining"),
        ((), {"decoder.norm.weight": torch.zeros(1)}, "VideoMAEForPreTraining"),
        ((), {}, "VideoMAEForPreTraining"),
    ],
)
def test_the_class_of_transformers(names: tuple[str, ...], state: dict[str, torch.Tensor], model: str):
    found = replace(exported(), state=state, class_names=names)
    assert found.videomae == model
    assert f"from transformers import {model}, VideoMAEImageProcessor" in card(found, "hf")


def test_the_head_of_a_card():
    found = card(exported())
    assert found.startswith("---\nlicense: apache-2.0\nlibrary_name: motionmae\npipeline_tag: video-classification\n")
    assert "# tuned: classifier of 2 classes (MotionMAE, " in found
    assert "- step 7 of the run `tuned` (task pretrain, seed 0)\n- data: `not recorded`\n- code: abc\n" in found
    bare = card(replace(exported(), class_names=(), step=None, license="mit", note="A note."), "hf")
    assert bare.startswith("---\nlicense: mit\nlibrary_name: transformers\ntags: [")
    assert "# tuned: pre-trained encoder (MotionMAE, " in bare
    assert "\n\nA note.\n\n- the run `tuned`" in bare
    assert "## Classes" not in bare
    assert "## Accuracy" not in bare


@pytest.mark.parametrize(
    ("settings", "init"),
    [
        ({"task": "finetune", "finetune.init": "runs/a", "pretrain.init": "scratch"}, "runs/a"),
        ({"task": "pretrain", "finetune.init": "runs/a", "pretrain.init": "runs/b"}, "runs/b"),
        ({"task": "pretrain", "finetune.init": "runs/a", "pretrain.init": "scratch"}, ""),
    ],
)
def test_the_licence_of_the_weights_that_training_began_with_applies(settings: dict[str, Any], init: str):
    found = card(exported(**settings))
    assert ("whose licence applies as well" in found) == bool(init)
    assert not init or f"It was trained from `{init}`" in found


def test_accuracy_is_a_row_for_each_test():
    found = replace(exported(**{"clip.stride": 3}), figures=(Figures(**figures()), Figures(**figures(shards="other"))))
    rows = [line for line in card(found).splitlines() if line.startswith("| `")]
    assert rows == [f"| `{shards}` | 20 | 1 | 5 x 3 | 81.23 % | 95.50 % |" for shards in ("val", "other")]
    assert "(`data.sampling=dense`, with a stride of 3 video frames, short side 224 pixels)" in card(found)
    assert "Not measured before the export." in card(exported())


def test_frames_are_described_by_their_sampling():
    assert "16 frames of 224 x 224 pixels, with a stride of 3 video frames," in card(exported(**{"clip.stride": 3}))
    segments = exported(**{"task": "finetune", "data.sampling": "segments"})
    assert "16 frames of 224 x 224 pixels, one from each of 16 equal parts of the video," in card(segments)
    assert "frames[int((part + 0.5) * len(frames) / 16)] for part in range(16)]" in card(segments, "hf")
    assert "[::3]\nstart = max(0, len(frames) - 16) // 2\n" in card(exported(**{"clip.stride": 3}), "hf")


@pytest.mark.parametrize(("count", "folded"), [(30, False), (31, True)])
def test_many_classes_are_folded(count: int, folded: bool):
    found = card(replace(exported(), class_names=tuple(f"c{number}" for number in range(count))))
    assert ("<details><summary>31 classes</summary>" in found) == folded
    assert "\n0. c0\n1. c1\n" in found
    assert f"\n{count - 1}. c{count - 1}\n" in found


def test_settings_are_those_that_differ_from_the_defaults():
    changes = {
        "clip.stride": 3,
        "optim.epochs": 700,
        "optim.base_lr": 0.5,
        "seed": 4,
        "launch.nodes": 3,
        "log.every_steps": 9,
    }
    block = card(exported(**changes)).partition("```yaml\n")[2].partition("```")[0]
    found = yaml.safe_load(block)
    assert found == {"clip": {"stride": 3}, "optim": {"epochs": 700, "base_lr": 0.5}, "seed": 4}  # no launch, no log
    assert "```yaml\n{}\n```" in card(exported())


@pytest.mark.parametrize(
    ("names", "state", "line"),
    [
        (NAMES, ENCODER, 'for label, score in model.predict("clip.mp4").top(3):'),
        ((), DECODER, 'model.reconstruct("clip.mp4").save("reconstruction.png")'),
        ((), ENCODER, 'print(model.features("clip.mp4").shape)'),
    ],
)
def test_code_for_the_python_interface(names: tuple[str, ...], state: dict[str, torch.Tensor], line: str):
    found = card(replace(exported(), class_names=names, state=state))
    assert 'model = motionmae.load("mine")' in found
    assert line in found
    assert ("reconstruct" in found) == (state is DECODER)
    assert "motionmae finetune --config NAME finetune.init=mine\n" in found
