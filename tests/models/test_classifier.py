import pytest
import torch
from timm.models import group_parameters

from motionmae.models.classifier import Classifier, build_classifier
from motionmae.models.cubes import cut_patches
from tests.models.tiny import moving_clips, tiny


def test_logits_are_the_head_of_the_normed_mean_of_all_tokens():
    config = tiny()
    model, clips = build_classifier(config, 7).eval(), moving_clips(config)
    with torch.no_grad():
        model.head.weight *= 1000  # logits near 1, against which the tolerance is small
    tokens = model.encoder(cut_patches(clips, 8))
    assert tokens.shape == (4, config.clip.cubes, 48)
    assert isinstance(model.encoder.norm, torch.nn.Identity)
    expected = torch.nn.functional.layer_norm(tokens.mean(1), (48,), eps=1e-6) @ model.head.weight.T
    torch.testing.assert_close(model(clips), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("mode", "rates"), [("full", [0, 0.3]), ("linear", [0, 0]), ("attentive", [0, 0])])
def test_drop_path_of_the_config_reaches_every_block_that_is_trained(mode: str, rates: list[float]):
    model = build_classifier(tiny(finetune={"drop_path": 0.3, "mode": mode, "init": "run"}), 3)
    for block in model.encoder.blocks:
        for part in (block.drop_path1, block.drop_path2):
            assert getattr(part, "drop_prob", 0.0) == pytest.approx(rates[int(block is model.encoder.blocks[1])])
    assert {weight.requires_grad for weight in model.encoder.parameters()} == {mode == "full"}
    assert all(weight.requires_grad for weight in [*model.head.parameters(), *model.norm.parameters()])


def test_layers_are_numbered_for_the_decay_of_their_learning_rate():
    model = build_classifier(tiny(), 3)
    layers = group_parameters(model, model.group_matcher())
    of = {name: number for number, names in layers.items() for name in names}
    assert {of["encoder.project.weight"], of["encoder.project.bias"]} == {0}
    assert [of[f"encoder.blocks.{number}.norm1.weight"] for number in (0, 1)] == [1, 2]
    assert {of["norm.weight"], of["head.weight"], of["head.bias"]} == {3}


def test_the_head_starts_a_thousand_times_smaller():
    head = build_classifier(tiny(), 400).head
    assert head.weight.std().item() == pytest.approx(0.02e-3, rel=0.05)
    assert (head.bias == 0).all()


def test_gradient_reaches_every_parameter_with_drop_path_and_checkpointing():
    config = tiny(model={"activation_checkpointing": "full"}, finetune={"drop_path": 0.1})
    model = build_classifier(config, 3)
    torch.manual_seed(0)
    torch.nn.functional.cross_entropy(model(moving_clips(config)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())


def test_initial_weights_follow_from_the_seed():
    first, second = (build_classifier(tiny(), 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert isinstance(build_classifier(tiny(), 3), Classifier)
