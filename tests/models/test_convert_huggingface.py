"""MotionMAE against Hugging Face's VideoMAE: same weights and masks give the same loss and gradient."""

import pytest
import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.classifier import build_classifier
from motionmae.models.convert import (
    ENCODER,
    PRETRAINING,
    from_huggingface,
    huggingface_config,
    to_huggingface,
)
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD, Encoder
from tests.models.tiny import noise_clips, tiny

transformers = pytest.importorskip("transformers")

SEEDS = torch.tensor([1, 2, 3, 4])


def videomae(**target: object) -> Config:
    return tiny(target={"kind": "frame", **target}, mask={"kind": "tube"})


def random_huggingface(config: Config, kind: str = PRETRAINING, **overrides: object) -> torch.nn.Module:
    """Make their model with random weights, including biases, norms and the mask token."""
    settings = huggingface_config(config) | overrides
    model = getattr(transformers, kind)(transformers.VideoMAEConfig(**settings, attn_implementation="eager"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    if kind == PRETRAINING:
        model.decoder.norm.eps = 1e-6  # VideoMAE's value; this implementation has torch's 1e-5
    return model


def theirs_of(clips: Tensor) -> Tensor:
    """Map uint8 (B, T, H, W, 3) to the pixel values (B, T, 3, H, W) that their model takes."""
    return ((clips / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mask", ["tube", "random"])
def test_loss_and_gradient_equal_hugging_faces(normalize: bool, mask: str):
    config = tiny(target={"kind": "frame", "normalize": normalize}, mask={"kind": mask})
    theirs, ours = random_huggingface(config), MotionMAE(config)
    ours.load_state_dict(from_huggingface(theirs.state_dict(), PRETRAINING))
    clips = noise_clips(config)

    loss = ours(clips, SEEDS).total
    loss.backward()
    masked = torch.zeros(4, config.clip.cubes, dtype=torch.bool).scatter(1, ours.draw_masks(SEEDS).masked, True)
    expected = theirs(theirs_of(clips), bool_masked_pos=masked).loss
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    gradients = to_huggingface(gradients, PRETRAINING, config.clip)
    assert set(gradients) == set(dict(theirs.named_parameters()))
    for name, weight in theirs.named_parameters():
        assert weight.grad is not None, name
        torch.testing.assert_close(
            gradients[name], weight.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert (gradients[name] - weight.grad).norm() <= 1e-5 * weight.grad.norm(), name


def test_weights_there_and_back_are_the_same_bit_for_bit():
    theirs = random_huggingface(videomae()).state_dict()
    ours = from_huggingface(theirs, PRETRAINING)
    assert set(ours) == set(build_motionmae(videomae()).state_dict())
    back = to_huggingface(ours, PRETRAINING, videomae().clip)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    assert all(value.is_contiguous() for value in (*ours.values(), *back.values()))


def test_our_weights_run_in_hugging_face():
    config = videomae()
    ours, theirs = build_motionmae(config), random_huggingface(config)
    theirs.load_state_dict(to_huggingface(ours.state_dict(), PRETRAINING, config.clip))
    clips = noise_clips(config)
    masked = torch.zeros(4, config.clip.cubes, dtype=torch.bool).scatter(1, ours.draw_masks(SEEDS).masked, True)
    expected = theirs(theirs_of(clips), bool_masked_pos=masked).loss
    assert ours(clips, SEEDS).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_names_of_published_checkpoints_are_read():
    theirs = random_huggingface(videomae()).state_dict()
    published = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value for name, value in theirs.items()
    }
    assert published.keys() != theirs.keys()
    new, old = from_huggingface(theirs, PRETRAINING), from_huggingface(published, PRETRAINING)
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_encoder_gives_the_features_of_videomae_model_and_back():
    config = tiny()
    theirs = random_huggingface(videomae(), ENCODER)
    encoder = Encoder(config.clip, config.model)
    encoder.load_state_dict(from_huggingface(theirs.state_dict(), ENCODER))
    clips = noise_clips(config, 2)
    expected = theirs(theirs_of(clips)).last_hidden_state
    torch.testing.assert_close(encoder(cut_patches(clips, 8)), expected, atol=1e-5, rtol=1e-5)
    back = to_huggingface(encoder.state_dict(), ENCODER, config.clip)
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())


def test_encoder_of_a_finetuned_model_has_no_norm_and_still_converts():
    config = tiny()
    theirs = random_huggingface(videomae(), ENCODER, use_mean_pooling=True)
    classifier = build_classifier(config, 5).eval()
    classifier.encoder.load_state_dict(from_huggingface(theirs.state_dict(), ENCODER))
    clips = noise_clips(config, 2)
    expected = theirs(theirs_of(clips)).last_hidden_state
    torch.testing.assert_close(classifier.encoder(cut_patches(clips, 8)), expected, atol=1e-5, rtol=1e-5)


def test_a_pretraining_model_without_final_norm_gives_the_same_loss():
    config = videomae()
    theirs = random_huggingface(config, use_mean_pooling=True)
    ours = build_motionmae(config)
    ours.encoder.norm = torch.nn.Identity()
    ours.load_state_dict(from_huggingface(theirs.state_dict(), PRETRAINING))
    clips = noise_clips(config)
    masked = torch.zeros(4, config.clip.cubes, dtype=torch.bool).scatter(1, ours.draw_masks(SEEDS).masked, True)
    expected = theirs(theirs_of(clips), bool_masked_pos=masked).loss
    assert ours(clips, SEEDS).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_missing_weight_is_named():
    theirs = random_huggingface(videomae()).state_dict()
    del theirs["decoder.head.bias"]
    with pytest.raises(UserError, match=r"lacks decoder\.head\.bias"):
        from_huggingface(theirs, PRETRAINING)


@pytest.mark.parametrize("config", [tiny(), tiny(target={"kind": "frame"}, model={"pos_embed": "learnable"})])
def test_a_model_that_is_no_videomae_is_refused(config: Config):
    with pytest.raises(UserError, match="no counterpart"):
        to_huggingface(build_motionmae(config).state_dict(), PRETRAINING, config.clip)
    with pytest.raises(UserError, match="differs from VideoMAE"):
        huggingface_config(config)
