"""Targets against a plain transcription of the method, cube by cube and in double precision."""

import itertools

import pytest
import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.cubes import all_cubes, cut_patches
from motionmae.models.targets import loss_of, make_targets, output_sizes
from tests.models.tiny import moving_clips, noise_clips, tiny
from tests.shared_data import SHARED_DATA, needs_shared_data


def every_cube(config: Config, batch: int) -> Tensor:
    return torch.arange(config.clip.cubes).expand(batch, -1)


def plain_motion(frames: Tensor, granularity: int, sign: str) -> Tensor:
    """(T, H, W, 3) in [0, 1] -> its motion, frame by frame."""
    motion = []
    for t in range(len(frames)):
        later = max(t, granularity)
        difference = frames[later - granularity] - frames[later]
        motion.append(difference.abs() if sign == "abs" else difference)
    return torch.stack(motion)


def plain_cube(frames: Tensor, config: Config, number: int) -> Tensor:
    """(T, H, W, C) -> (pixels of the cube, C)."""
    clip = config.clip
    grid = clip.grid_size
    time, row, column = number // clip.spatial_patches, number // grid % grid, number % grid
    t, y, x = time * clip.cube_frames, row * clip.cube_size, column * clip.cube_size
    return frames[t : t + clip.cube_frames, y : y + clip.cube_size, x : x + clip.cube_size].reshape(-1, frames.shape[3])


def plain_target(frames: Tensor, config: Config, numbers: Tensor, eps: float, constant: float) -> Tensor:
    cubes = []
    for number in numbers.tolist():
        cube = plain_cube(frames, config, number)
        if config.target.normalize:
            mean = cube.mean(0)
            std = (((cube - mean) ** 2).sum(0) / (len(cube) - 1)).sqrt()
            cube = (cube - mean) / (std + eps)
        else:
            cube = cube / constant
        cubes.append(cube.reshape(-1))
    return torch.stack(cubes)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("granularity", [1, 2, 3, 5])
@pytest.mark.parametrize("sign", ["abs", "signed"])
@pytest.mark.parametrize("cube_frames", [1, 2, 4])
def test_targets_equal_the_plain_transcription(normalize: bool, granularity: int, sign: str, cube_frames: int):
    config = tiny(
        clip={"cube_frames": cube_frames},
        target={
            **{"normalize": normalize, "motion_granularity": granularity, "motion_sign": sign},
            **{"frame_std": 0.5, "motion_std": 0.25},
        },
    )
    clips = noise_clips(config, 2)
    numbers = torch.stack([torch.randperm(config.clip.cubes)[:11].sort().values for _ in clips])
    targets = make_targets(config, cut_patches(clips, config.clip.cube_size), numbers)
    for i, clip in enumerate(clips.double() / 255):
        space = plain_target(clip, config, numbers[i], config.target.frame_eps, 0.5)
        difference = plain_motion(clip, granularity, sign)
        motion = plain_target(difference, config, numbers[i], config.target.motion_eps, 0.25)
        torch.testing.assert_close(targets["space"].values[i].double(), space, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(targets["time"].values[i].double(), motion, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["difference", "flow"])
def test_motion_can_be_normalised_by_the_statistics_of_its_clip(source: str):
    config = tiny(target={"motion_norm": "clip", "motion_source": source})
    clips, flow = noise_clips(config, 2), torch.randn(2, 8, 32, 32, 2)
    patches = cut_patches(clips, 8)
    numbers = torch.stack([torch.randperm(config.clip.cubes)[:11].sort().values for _ in clips])
    targets = make_targets(config, patches, numbers, flow)
    for i, clip in enumerate(clips.double() / 255):
        motion = plain_motion(clip, 1, "abs") if source == "difference" else flow[i].double()
        cubes = torch.stack([plain_cube(motion, config, number) for number in numbers[i].tolist()])
        std, mean = torch.std_mean(cubes, dim=(0, 1))
        expected = (cubes - mean) / (std + config.target.motion_eps)
        torch.testing.assert_close(targets["time"].values[i].double(), expected.flatten(1), atol=2e-5, rtol=1e-5)
        restored = targets["time"].to_pixels(targets["time"].values)[i].double()
        torch.testing.assert_close(restored, cubes.flatten(1), atol=1e-5, rtol=1e-5)
        space = plain_target(clip, config, numbers[i], config.target.frame_eps, 1.0)
        torch.testing.assert_close(targets["space"].values[i].double(), space, atol=2e-6, rtol=1e-5)


def test_motion_repeats_the_first_difference_at_the_front():
    config = tiny(target={"normalize": False, "motion_granularity": 3})
    patches = cut_patches(noise_clips(config, 1), config.clip.cube_size)
    motion = make_targets(config, patches, every_cube(config, 1))["time"].values
    cubes = motion.view(config.clip.temporal_patches, config.clip.spatial_patches, 2, -1)
    frames = cubes.transpose(1, 2).flatten(0, 1)
    assert torch.equal(frames[0], frames[3])
    assert torch.equal(frames[2], frames[3])
    assert not torch.equal(frames[4], frames[3])


def test_signed_motion_is_previous_minus_current():
    config = tiny(target={"normalize": False, "motion_sign": "signed"})
    clips = torch.full((1, 8, 32, 32, 3), 10, dtype=torch.uint8)
    clips[:, 4:] = 61  # brighter from frame 4 on: previous minus current is -51 grey levels
    motion = make_targets(config, cut_patches(clips, 8), every_cube(config, 1))["time"].values
    values = motion.view(8 // 2, -1, 2, 8 * 8 * 3)
    assert (values[2, :, 0] + 0.2).abs().max() < 1e-7
    assert (values[2, :, 1] == 0).all()
    assert (values[:2] == 0).all()
    assert (values[3] == 0).all()


def test_flow_target_is_the_stored_flow_of_each_cube():
    config = tiny(target={"motion_source": "flow", "normalize": True})
    flow = torch.randn(2, 8, 32, 32, 2, dtype=torch.float64).half()
    patches = cut_patches(noise_clips(config, 2), 8)
    targets = make_targets(config, patches, every_cube(config, 2), flow)["time"]
    assert output_sizes(config)["time"] == targets.values.shape[2] == 2 * 8 * 8 * 2
    for i in range(2):
        expected = plain_target(
            flow[i].double(), config, torch.arange(config.clip.cubes), config.target.motion_eps, 1.0
        )
        torch.testing.assert_close(targets.values[i].double(), expected, atol=1e-5, rtol=1e-5)


def test_flow_target_without_flow_names_the_remedy():
    config = tiny(target={"motion_source": "flow"})
    with pytest.raises(UserError, match="make the shards with --flow"):
        make_targets(config, cut_patches(noise_clips(config, 1), 8), every_cube(config, 1))


@pytest.mark.parametrize("normalize", [True, False])
def test_to_pixels_undoes_the_normalisation(normalize: bool):
    config = tiny(target={"normalize": normalize, "frame_std": 0.2})
    clips = noise_clips(config, 2)
    patches = cut_patches(clips, 8)
    space = make_targets(config, patches, every_cube(config, 2))["space"]
    torch.testing.assert_close(space.to_pixels(space.values), all_cubes(patches, 2) / 255, atol=1e-6, rtol=0)


def test_losses_are_torchs_in_float32_whatever_the_prediction_is():
    prediction, target = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    difference = (prediction - target).double()
    plain = {
        "mse": difference.square().mean(),
        "l1": difference.abs().mean(),
        "smooth_l1": torch.where(difference.abs() < 1, difference.square() / 2, difference.abs() - 0.5).mean(),
    }
    for kind, expected in plain.items():
        assert loss_of(prediction, target, kind).item() == pytest.approx(expected.item(), rel=1e-6)
        assert loss_of(prediction.bfloat16(), target, kind).dtype == torch.float32


def test_a_loss_of_some_cubes_is_the_mean_over_clips_and_zero_where_none_counts():
    target = torch.zeros(3, 4, 2)
    prediction = torch.arange(12.0).view(3, 4, 1).expand_as(target).requires_grad_()
    counted = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()
    loss = loss_of(prediction, target, "l1", counted)
    assert loss.item() == pytest.approx((0 + (4 + 5 + 7) / 3 + 0) / 3)
    loss.backward()
    assert torch.equal(prediction.grad[..., 0] != 0, counted & (prediction[..., 0] > 0))


def static_scene_with_a_moving_square(noise: float) -> tuple[Tensor, Tensor]:
    """A textured still scene with sensor noise of ``noise`` grey levels; a textured square crosses its upper half.

    Returns the clip (1, 16, 224, 224, 3), and bool (N, values): which values of each cube the square covers.
    """
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 56, 56, generator=generator) * 200 + 25
    still, square = torch.nn.functional.interpolate(coarse, 224, mode="bilinear").permute(0, 2, 3, 1)
    clip = still.repeat(16, 1, 1, 1)
    inside = torch.zeros(16, 224, 224, dtype=torch.bool)
    for t in range(16):
        clip[t, 32:96, 6 * t : 6 * t + 64] = square[:64, :64]
        inside[t, 32:96, 6 * t : 6 * t + 64] = True
    clip += torch.randn(clip.shape, generator=generator) * noise
    # a cube moves if the square covers part of it in some of its frames or in the frame before
    covered = inside | torch.cat([inside[:1], inside[:-1]])
    cubes = all_cubes(cut_patches(covered[None, ..., None], 16), 2)[0]
    return clip.round().clamp(0, 255).to(torch.uint8)[None], cubes


def test_default_motion_eps_keeps_the_noise_of_a_static_scene_quiet():
    """The reason for ``target.motion_eps``: with VideoMAE's 1e-6 a fixed camera's noise counts like real motion."""
    clips, covered = static_scene_with_a_moving_square(noise=1)
    still, moving = ~covered.any(1), covered.float().mean(1) > 0.5
    assert still.sum() > 500
    assert moving.sum() > 100

    def loudness(eps: dict[str, float]) -> tuple[float, float]:
        config = Config(target=tiny(target=eps).target)
        time = make_targets(config, cut_patches(clips, 16), every_cube(config, 1))["time"].values[0]
        std = time.view(len(time), -1, 3).std(1).mean(1)
        return std[still].median().item(), std[moving].median().item()

    quiet, loud = loudness({})
    assert quiet < 0.45
    assert loud > 0.9
    quiet, loud = loudness({"motion_eps": 1e-6})
    assert quiet > 0.99
    assert loud > 0.99


@needs_shared_data
def test_default_motion_eps_tells_motion_from_noise_in_real_surveillance_footage():
    av, cv2 = pytest.importorskip("av"), pytest.importorskip("cv2")
    frames = []
    with av.open(str(SHARED_DATA / "videos/general/vtest.avi")) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % 4 == 0:
                image = cv2.resize(frame.to_ndarray(format="rgb24"), (341, 256), interpolation=cv2.INTER_AREA)
                frames.append(image[16:240, 58:282])
            if len(frames) == 16:
                break
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = [
        torch.from_numpy(cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)).norm(dim=-1)
        for a, b in itertools.pairwise(grey)
    ]
    config = Config()
    speed = all_cubes(cut_patches(torch.stack([flow[0], *flow])[None, ..., None], 16), 2)[0]
    clips = torch.stack([torch.from_numpy(frame) for frame in frames])[None]
    time = make_targets(config, cut_patches(clips, 16), every_cube(config, 1))["time"].values[0]
    loudness = time.view(len(time), -1, 3).std(1).mean(1)
    still, moving = speed.quantile(0.95, dim=1) < 0.1, speed.mean(1) > 1
    assert still.sum() > 50
    assert moving.sum() > 20
    assert loudness[still].median() < 0.5
    assert loudness[moving].median() > 0.8


def test_flat_cubes_give_zero_targets():
    config = tiny()
    clips = torch.full((1, 8, 32, 32, 3), 200, dtype=torch.uint8)
    for target in make_targets(config, cut_patches(clips, 8), every_cube(config, 1)).values():
        assert (target.values == 0).all()


def test_targets_of_some_cubes_are_those_of_all():
    config = tiny()
    patches = cut_patches(moving_clips(config, 2), 8)
    some = torch.tensor([[0, 5, 63], [1, 17, 40]])
    everything = make_targets(config, patches, every_cube(config, 2))
    for name, target in make_targets(config, patches, some).items():
        for i in range(2):
            torch.testing.assert_close(target.values[i], everything[name].values[i, some[i]])
