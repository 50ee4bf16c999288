import re

import pytest

from motionmae.config import Config
from motionmae.config.resume import RESULT_KEYS, check_same_run
from motionmae.config.section import marks_of
from motionmae.config.trees import merge, nest
from motionmae.errors import UserError


def changed(**sections: dict[str, object]) -> Config:
    return Config(name="run").updated(sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"engine": {"zero_stage": 3, "micro_batch_size": 16, "precision": "fp32"}},
        {"launch": {"nodes": 8}, "log": {"every_steps": 1}, "checkpoint": {"keep_last": 5}},
        {"data": {"shards": "/elsewhere", "threads": 8, "prefetch": 9, "max_corrupt_samples": 5}},
        {"model": {"activation_checkpointing": "full", "checkpoint_every": 3}},
    ],
)
def test_settings_that_change_no_sample_and_no_schedule_may_change(sections: dict[str, dict[str, object]]):
    check_same_run(changed().model_dump(mode="json"), changed(**sections))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"seed": 1}, "seed=1 (was 0)"),
        ({"model": {"size": "vit_l"}}, "model.size=vit_l (was vit_b)"),
        ({"optim": {"global_batch_size": 512}}, "optim.global_batch_size=512 (was 1024)"),
        ({"optim": {"epochs": 800}}, "optim.epochs=800 (was 1600)"),
        ({"data": {"flip": False}}, "data.flip=False (was True)"),
        ({"data": {"crop_scale": (0.2, 1.0)}}, "data.crop_scale=[0.2, 1.0] (was [0.5, 1.0])"),
        ({"clip": {"stride": 2}}, "clip.stride=2 (was 4)"),
        ({"mask": {"ratio": 0.75}}, "mask.ratio=0.75 (was 0.9)"),
        ({"target": {"kind": "frame"}}, "target.kind=frame (was both)"),
    ],
)
def test_others_are_refused_by_name(sections: dict[str, object], named: str):
    with pytest.raises(UserError) as refusal:
        check_same_run(changed().model_dump(mode="json"), changed(**sections))
    assert named in str(refusal.value)


def test_a_key_may_change_exactly_where_its_mark_says_so():
    """Every key of the config, with another value in the checkpoint."""
    config = changed()
    for key, mark in marks_of(Config).items():
        saved = merge(config.model_dump(mode="json"), nest(key, "another"))
        if mark.get("on_resume") in ("may_change", "may_change_result"):
            check_same_run(saved, config)
        else:
            with pytest.raises(UserError, match=re.escape(f" {key}=")):
                check_same_run(saved, config)
        assert (key in RESULT_KEYS) == (mark.get("on_resume") != "may_change")


def test_results_depend_on_what_a_resume_keeps_and_on_some_things_it_may_change():
    may_change = {"data.shards", "data.beton", "finetune.init", "engine.precision", "test.clips"}
    assert may_change | {"seed", "task", "optim.epochs", "data.flip", "model.size"} <= RESULT_KEYS
    assert not RESULT_KEYS & {"name", "output_dir", "engine.zero_stage", "launch.nodes", "data.cache", "data.threads"}
    changes = {"data.shards": "/other", "engine.precision": "bf16", "test.clips": 1}
    check_same_run(changed().model_dump(mode="json"), changed().updated(changes))


def test_a_key_the_checkpoint_does_not_know_had_its_default():
    saved = changed().model_dump(mode="json")
    del saved["optim"]["beta2"]
    check_same_run(saved, changed())
    with pytest.raises(UserError, match=r"optim\.beta2"):
        check_same_run(saved, changed(optim={"beta2": 0.999}))
