import pytest
import torch

from motionmae.models.classifier import Classifier, build_classifier
from motionmae.models.cubes import cut_patches
from tests.models.tiny import moving_clips, tiny


def test_logits_are_the_head_of_the_normed_mean_of_all_tokens():
    config = tiny()
    model, clips = build_classifier(config, 7).eval(), moving_clips(config)
    tokens = model.encoder(cut_patches(clips, 8))
    assert tokens.shape == (4, config.clip.cubes, 48)
    assert isinstance(model.encoder.norm, torch.nn.Identity)
    expected = torch.nn.functional.layer_norm(tokens.mean(1), (48,), eps=1e-6) @ model.head.weight.T
    torch.testing.assert_close(model(clips), expected)


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
