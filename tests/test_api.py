"""`import motionmae`: the Python interface."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import motionmae
from motionmae.__main__ import main
from motionmae.errors import UserError
from tests.evaluation.huggingface import (
    CLASSES,
    central_frames,
    processor_of,
    save_huggingface,
    their_logits,
    write_clip,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=100)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("hf") / "model"
    return folder, save_huggingface(folder)


@pytest.fixture(scope="module")
def model(theirs: tuple[Path, torch.nn.Module]) -> motionmae.Model:
    return motionmae.load(theirs[0], device="cpu")


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_import_loads_nothing_and_knows_its_names():
    script = (
        "import sys; before = set(sys.modules); import motionmae; print(*sorted(set(sys.modules) - before)); "
        "assert {'load', 'dataset', 'Model', 'UserError'} <= set(dir(motionmae))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names) == {"motionmae"}
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        motionmae.lod  # noqa: B018
    assert (ROOT / "motionmae/py.typed").is_file()


def test_the_input_is_that_of_the_image_processor_of_transformers(
    model: motionmae.Model, theirs: tuple[Path, torch.nn.Module], clip: Path
):
    [view] = torch.from_numpy(model.preprocess(clip)).permute(0, 1, 4, 2, 3)
    processor = processor_of(theirs[1], do_rescale=False, do_normalize=False)
    [expected] = processor(central_frames(clip, 8, 4), return_tensors="pt")["pixel_values"]
    assert torch.equal(view, expected)  # grey levels, to the bit
    normalised = (view / 255 - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor(
        (0.229, 0.224, 0.225)
    )[:, None, None]
    [expected] = processor_of(theirs[1])(central_frames(clip, 8, 4), return_tensors="pt")["pixel_values"]
    assert (normalised - expected).abs().max() < 1e-6


def test_a_path_an_array_and_a_tensor_give_the_same(
    model: motionmae.Model, theirs: tuple[Path, torch.nn.Module], clip: Path
):
    frames = frames_of(clip)
    found = [model.predict(video).logits for video in (clip, str(clip), frames, torch.from_numpy(frames))]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    np.testing.assert_allclose(found[0][0], their_logits(theirs[1], clip), atol=2e-5)
    assert np.array_equal(model.features(clip), model.features(frames))
    for wrong in (frames / 255, frames[0], frames[:0]):
        with pytest.raises(UserError, match="give uint8"):
            model.predict(wrong)


def test_several_views_are_the_mean_of_their_softmax(
    model: motionmae.Model, theirs: tuple[Path, torch.nn.Module], clip: Path
):
    found = model.predict(clip, clips=2, crops=3)
    assert found.logits.shape == (6, 3)
    frames = frames_of(clip)[::4]  # 25 frames: the first clip starts at 0, the second at 17
    processor = processor_of(theirs[1], do_center_crop=False)
    scores = []
    for start in (0, 17):
        pixels = processor(list(frames[start : start + 8]), return_tensors="pt")["pixel_values"]
        for left in (0, 5, 10):  # 32 of 42 pixels
            with torch.no_grad():
                scores.append(theirs[1](pixels[..., left : left + 32]).logits[0].softmax(0))
    np.testing.assert_allclose(found.scores, torch.stack(scores).mean(0), atol=1e-5)
    assert found.label == found.top(1)[0][0] == list(CLASSES.values())[int(found.scores.argmax())]
    assert [score for _, score in found.top(9)] == sorted(found.scores.tolist(), reverse=True)


def test_a_timeline_scores_every_window(
    model: motionmae.Model, theirs: tuple[Path, torch.nn.Module], clip: Path, tmp_path: Path
):
    line = model.timeline(clip)  # 100 frames at 20 a second; a window spans 29 frames
    assert line.frames.tolist() == [[0, 28], [32, 60], [64, 92], [68, 96]]
    np.testing.assert_allclose(line.seconds, line.frames / 20)
    processor, frames = processor_of(theirs[1]), frames_of(clip)
    for (first, last), scores in zip(line.frames, line.scores, strict=True):
        with torch.no_grad():
            inputs = processor(list(frames[first : last + 1 : 4]), return_tensors="pt")
            np.testing.assert_allclose(scores, theirs[1](**inputs).logits[0].softmax(0), atol=1e-5)
    np.testing.assert_allclose(line.mean.scores, line.scores.mean(0))
    assert model.timeline(clip, every=0.5).seconds[:4, 0].tolist() == pytest.approx(
        [0, 0.6, 1.0, 1.6]
    )  # multiples of 0.2
    line.save(tmp_path / "line.png")
    with Image.open(tmp_path / "line.png") as picture:
        assert np.array(picture.convert("L")).std() > 10
    short = write_clip(tmp_path / "short.mp4", frames=5)
    assert model.timeline(short).frames.tolist() == [[0, 4]]


def test_reconstruct_and_errors(model: motionmae.Model, clip: Path, tmp_path: Path):
    save_huggingface(tmp_path / "pretrained", "VideoMAEForPreTraining")
    pretrained = motionmae.load(tmp_path / "pretrained", device="cpu")
    found = pretrained.reconstruct(clip, ratio=0.75)
    assert found.frames.space is not None
    assert found.frames.space.shape == (1, 8, 32, 32, 3)
    assert found.frames.mask.float().mean() == 0.75
    found.save(tmp_path / "out.png")
    assert main(["reconstruct", str(tmp_path / "pretrained"), "--video", str(clip), "--ratio", "0.75", "--out",
                 str(tmp_path / "cli.png")]) == 0  # fmt: skip
    pictures = [np.array(Image.open(tmp_path / name)) for name in ("out.png", "cli.png")]
    assert np.array_equal(*pictures)
    with pytest.raises(UserError, match="must end in"):
        found.save(tmp_path / "out.bmp")
    with pytest.raises(UserError, match="only a pre-training model reconstructs"):
        model.reconstruct(clip)
    with pytest.raises(UserError, match="cannot be read"):
        model.predict(tmp_path / "gone.mp4")
    with pytest.raises(UserError, match="choose auto, cpu or cuda"):
        motionmae.load(tmp_path / "pretrained", device="tpu")
    assert "3 classes" in repr(model)
    assert model.class_names == tuple(CLASSES.values())
    assert (pretrained.class_names, pretrained.step) == ((), None)
    assert "pretrained" in repr(pretrained)
    assert "classes" not in repr(pretrained)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(module.training for module in model.module.modules())
    assert found.title == "clip.mp4, 75% masked (tube)"


def test_a_reconstruction_has_a_mask_of_its_seed_and_the_ratio_of_the_training(clip: Path, tmp_path: Path):
    save_huggingface(tmp_path / "pretrained", "VideoMAEForPreTraining")
    pretrained = motionmae.load(tmp_path / "pretrained", device="cpu")
    first, again, other = (pretrained.reconstruct(clip, ratio=0.75, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.frames.mask, again.frames.mask)
    assert not torch.equal(first.frames.mask, other.frames.mask)
    assert torch.equal(pretrained.reconstruct(clip, ratio=0.75).frames.mask,
                       pretrained.reconstruct(clip, ratio=0.75, seed=0).frames.mask)  # fmt: skip
    usual = pretrained.reconstruct(frames_of(clip))
    ratio = pretrained.config.mask.ratio
    assert usual.title == f"video, {ratio:.0%} masked ({pretrained.config.mask.kind})"
    assert float(usual.frames.mask.float().mean()) == pytest.approx(ratio, abs=0.07)
    for name, columns in (("default", {}), ("two", {"columns": 2}), ("eight", {"columns": 8})):
        first.save(tmp_path / f"{name}.png", **columns)
    default, two, eight = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("default", "two", "eight"))
    assert np.array_equal(default, eight)
    assert not np.array_equal(default, two)
    first.save(str(tmp_path / "x.gif"), columns=2)
    with Image.open(tmp_path / "x.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 8  # all frames, whatever the columns


def test_settings_and_classes_change_how_a_model_is_used(theirs: tuple[Path, torch.nn.Module], clip: Path):
    slower = motionmae.load(str(theirs[0]), device="cpu", settings={"clip.stride": 2, "test.batch_size": 3})
    assert (slower.config.clip.stride, slower.config.test.batch_size) == (2, 3)
    assert np.array_equal(
        slower.preprocess(clip), motionmae.load(theirs[0], settings={"clip.stride": 2}).preprocess(clip)
    )
    assert slower.preprocess(clip, clips=2, crops=3).shape == (6, 8, 32, 32, 3)
    assert slower.features(clip).ndim == 1
