import dataclasses

import pytest
import torch

from motionmae.models.classifier import Classifier, build_classifier
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import build_motionmae
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


def test_it_takes_over_a_pretrained_encoder_without_its_norm():
    config = tiny()
    pretrained = build_motionmae(dataclasses.replace(config, seed=5))
    model = build_classifier(config, 3)
    model.load_encoder(pretrained.state_dict())
    for name, weight in model.encoder.named_parameters():
        assert torch.equal(weight, pretrained.get_parameter(f"encoder.{name}")), name


def test_an_encoder_of_another_shape_is_not_taken():
    model = build_classifier(tiny(), 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_encoder(build_motionmae(tiny(model={"width": 96})).state_dict())


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
