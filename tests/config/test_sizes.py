import re

import pytest

from motionmae.config import Config, ModelConfig, load_config
from motionmae.config.method import SIZES, Size
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.errors import UserError


def test_sizes_of_the_paper():
    assert ModelConfig(size="vit_b").dimensions == Size(768, 12, 12, 384, 6)
    assert ModelConfig(size="vit_l").dimensions == Size(1024, 24, 16, 512, 8)
    assert ModelConfig(size="vit_h").dimensions == Size(1280, 32, 16, 512, 8)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_consistent(name: str):
    size = ModelConfig(size=name).dimensions
    assert size.width % size.heads == 0
    assert size.decoder_width % size.decoder_heads == 0


def test_own_numbers_win_over_the_names():
    own = ModelConfig(size="vit_s", width=64, depth=3, heads=4, decoder_width=32, decoder_heads=2)
    assert own.dimensions == Size(64, 3, 4, 32, 2)
    assert ModelConfig(size="vit_s", depth=3).dimensions == Size(384, 3, 6, 192, 3)


@pytest.mark.parametrize(
    ("fields", "key"),
    [({"width": 100, "heads": 3}, "model.heads=3"), ({"decoder_width": 128}, "model.decoder_heads=6")],
)
def test_a_width_its_heads_do_not_divide_is_refused_with_a_remedy_that_works(fields: dict[str, int], key: str):
    with pytest.raises(UserError, match=f"{key} is not possible") as refusal:
        Config().updated({"model": fields})
    name, _, value = str(refusal.value).rpartition(" ")[2].removeprefix("model.").partition("=")
    Config().updated({"model": {**fields, name: int(value)}})


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["vitb_k400", "finetune_vitb_k400", "tiny_toy"])
def test_the_remedy_for_a_batch_above_the_data_gives_steps(name: str, ranks: int):
    """Every printed setting is taken as it is printed, and must lead to a run."""
    config = load_config(name)
    batch = config.optim.global_batch_size
    for videos in (*range(1, 130, 3), batch - 1):
        if videos >= batch:
            continue
        with pytest.raises(UserError, match=f"holds {videos} samples, fewer than one step") as refusal:
            steps_per_epoch(config, videos, ranks)
        settings = re.findall(r"\b(?:optim|engine)\.\w+=\d+", str(refusal.value).partition(": ")[2])
        if not settings:
            assert videos < 2 * ranks
            continue
        fitting = load_config(name, settings)
        steps = steps_per_epoch(fitting, videos, ranks)
        assert steps >= min(4, videos // (2 * ranks))
        assert f"gives {steps} step" in str(refusal.value)
        accumulation_steps(fitting, ranks)
