import pytest

from monitoring.flops_per_clip import flops_per_clip_of
from motionmae.config import load_config
from motionmae.planning.flops import step_flops


@pytest.mark.parametrize("mode", ["full", "linear", "attentive"])
def test_flops_of_fine_tuning_match_the_plan(mode: str):
    config = load_config("finetune_vitb_k400", [f"finetune.mode={mode}"])
    work = flops_per_clip_of(config)
    assert work.flops == step_flops(config).model
    assert work.tokens == config.clip.cubes


def test_pre_training_encodes_the_visible_cubes_only():
    config = load_config("vitb_k400", ["mask.ratio=0.75"])
    assert flops_per_clip_of(config).flops == step_flops(config).model
    assert flops_per_clip_of(config).tokens == config.clip.cubes // 4
