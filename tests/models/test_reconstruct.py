import pytest
import torch

from motionmae.errors import UserError
from motionmae.models.cubes import all_cubes, cut_patches
from motionmae.models.motionmae import build_motionmae
from tests.models.tiny import moving_clips, noise_clips, tiny

SEEDS = torch.tensor([3, 4])


def masked_pixels(mask: torch.Tensor) -> torch.Tensor:
    """(B, temporal patches, grid size, grid size) -> (B, T, H, W)."""
    return mask.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("normalize", [True, False])
def test_visible_cubes_show_the_truth_and_masked_ones_the_prediction(normalize: bool):
    config = tiny(target={"normalize": normalize})
    model, clips = build_motionmae(config), noise_clips(config, 2)
    found = model.reconstruct(clips, SEEDS)
    masked = masked_pixels(found.mask)
    assert masked.float().mean() == 0.75
    assert torch.equal(found.clip, clips / 255)
    assert (found.masked[masked] == 0.5).all()
    for shown, truth in ((found.masked, found.clip), (found.space, found.clip), (found.time, found.motion)):
        assert shown.shape == clips.shape
        assert torch.equal(shown[~masked], truth[~masked])
        assert not torch.equal(shown[masked], truth[masked])
    assert found.true_statistics is normalize


def test_motion_is_the_absolute_difference_of_neighbouring_frames():
    config = tiny()
    clips = noise_clips(config, 2)
    motion = build_motionmae(config).reconstruct(clips, SEEDS).motion
    pixels = clips.float() / 255
    torch.testing.assert_close(motion[:, 1:], (pixels[:, 1:] - pixels[:, :-1]).abs())
    torch.testing.assert_close(motion[:, 0], motion[:, 1])


def test_masked_cubes_borrow_the_true_mean_and_deviation():
    """With normalised targets, a prediction of zeros must show the true mean of each cube."""
    config = tiny()
    model, clips = build_motionmae(config), noise_clips(config, 2)
    head = model.decoders["space"].heads["space"]
    torch.nn.init.zeros_(head.weight)
    found = model.reconstruct(clips, SEEDS)
    shown, truth = (all_cubes(cut_patches(x, 8), 2).unflatten(2, (-1, 3)) for x in (found.space, found.clip))
    masked = found.mask.flatten(1)
    expected = truth[masked].mean(1, keepdim=True).expand(-1, 128, -1)
    torch.testing.assert_close(shown[masked], expected, atol=1e-6, rtol=0)


def test_another_ratio_masks_another_share():
    config = tiny()
    found = build_motionmae(config).reconstruct(moving_clips(config, 2), SEEDS, ratio=0.5)
    assert found.mask.float().mean() == 0.5


@pytest.mark.parametrize("ratio", [0.01, 1.0])
def test_a_ratio_that_masks_nothing_or_everything_is_refused(ratio: float):
    config = tiny()
    with pytest.raises(UserError, match=f"ratio={ratio} masks"):
        build_motionmae(config).reconstruct(moving_clips(config, 2), SEEDS, ratio=ratio)


def test_absent_heads_have_no_reconstruction():
    clips = moving_clips(tiny(), 2)
    frame = build_motionmae(tiny(target={"kind": "frame"})).reconstruct(clips, SEEDS)
    assert frame.motion is None
    assert frame.time is None
    assert frame.space is not None
    assert build_motionmae(tiny(target={"kind": "motion"})).reconstruct(clips, SEEDS).space is None


def test_flow_is_reconstructed_with_its_two_channels():
    config = tiny(target={"motion_source": "flow"})
    flow = torch.randn(2, 8, 32, 32, 2)
    found = build_motionmae(config).reconstruct(moving_clips(config, 2), SEEDS, flow=flow)
    assert torch.equal(found.motion, flow)
    assert found.time.shape == flow.shape


def test_reconstructions_need_no_gradient():
    config = tiny()
    assert not build_motionmae(config).reconstruct(moving_clips(config, 2), SEEDS).space.requires_grad
