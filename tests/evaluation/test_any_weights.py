"""Weights of every form, against the transformers model that they came from."""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import motionmae
from motionmae.__main__ import main
from motionmae.errors import UserError
from motionmae.evaluation.load_model import EncoderOnly, Finetuned, Pretrained, load_model
from motionmae.evaluation.weights_source import find_weights
from tests.evaluation.huggingface import CLASSES, processor_of, save_huggingface, their_logits, write_clip
from tests.models.test_convert_released import as_videomae
from tests.training.shards import make_shards

SMALL = {"clip.size": 32, "clip.frames": 8, "model.heads": 4}


def ours_of(weights: Path, clip: Path, **options: object) -> torch.Tensor:
    return torch.from_numpy(motionmae.load(weights, device="cpu", **options).predict(clip).logits[0])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("hf") / "videomae-tiny"
    return folder, save_huggingface(folder)


def test_a_folder_of_transformers_and_its_exports_give_its_logits(
    classifier: tuple[Path, torch.nn.Module], clip: Path, tmp_path: Path
):
    folder, theirs = classifier
    expected = their_logits(theirs, clip)
    close = {"atol": 2e-5, "rtol": 2e-5}
    torch.testing.assert_close(ours_of(folder, clip), expected, **close)
    torch.testing.assert_close(ours_of(folder / "model.safetensors", clip), expected, **close)
    assert motionmae.load(folder).class_names == tuple(CLASSES.values())
    for kind in ("safetensors", "hf"):
        assert main(["export", str(folder), "--format", kind, "--out", str(tmp_path / kind)]) == 0
        assert motionmae.load(tmp_path / kind).class_names == tuple(CLASSES.values())
        torch.testing.assert_close(ours_of(tmp_path / kind, clip), expected, atol=1e-4, rtol=1e-4)
    exported = type(theirs).from_pretrained(tmp_path / "hf").eval()
    torch.testing.assert_close(ours_of(tmp_path / "hf", clip), their_logits(exported, clip), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_norm_eps": 1e-3},
        {"num_frames": 16, "image_size": 48, "tubelet_size": 4},
        {"num_labels": 5, "id2label": {n: f"LABEL_{n}" for n in range(5)}},
        {"image_size": (32, 32), "patch_size": [16, 16]},
    ],
    ids=str,
)
def test_other_settings_of_transformers_are_followed(settings: dict[str, object], clip: Path, tmp_path: Path):
    theirs = save_huggingface(tmp_path / "model", **settings)
    theirs.config.image_size = 48 if settings.get("image_size") == 48 else 32
    torch.testing.assert_close(ours_of(tmp_path / "model", clip), their_logits(theirs, clip), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_mean_pooling": False}, "config.json has use_mean_pooling=False"),
        ({"intermediate_size": 96}, "config.json has intermediate_size=96, and this ViT has 192"),
        ({"hidden_act": "relu"}, "config.json has hidden_act=relu"),
        ({"num_channels": 1}, "config.json has num_channels=1"),
    ],
    ids=str,
)
def test_what_is_no_plain_videomae_is_refused_by_name(settings: dict[str, object], said: str, tmp_path: Path):
    save_huggingface(tmp_path / "model", **settings)
    with pytest.raises(UserError, match=re.escape(said)):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "pixels",
    [
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
    ],
    ids=str,
)
def test_another_normalisation_is_folded_in(
    pixels: dict[str, object], classifier: tuple[Path, torch.nn.Module], clip: Path, tmp_path: Path
):
    folder, theirs = classifier
    other = shutil.copytree(folder, tmp_path / "other")
    processor = processor_of(theirs, **pixels)
    processor.save_pretrained(other)
    expected = their_logits(theirs, clip, processor=processor)
    assert not torch.allclose(expected, their_logits(theirs, clip), atol=1e-2)
    torch.testing.assert_close(ours_of(other, clip), expected, atol=1e-4, rtol=1e-4)


def test_weights_in_several_files(classifier: tuple[Path, torch.nn.Module], clip: Path, tmp_path: Path):
    _, theirs = classifier
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(ours_of(tmp_path / "parts", clip), their_logits(theirs, clip), atol=2e-5, rtol=2e-5)
    index = tmp_path / "parts" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../parts/model-00001-of-00002.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        load_model(tmp_path / "parts")


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_an_encoder_and_a_pretraining_of_transformers_give_their_tokens(mean_pooling: bool, clip: Path, tmp_path: Path):
    from tests.evaluation.huggingface import central_frames

    for kind, ours in (("VideoMAEModel", EncoderOnly), ("VideoMAEForPreTraining", Pretrained)):
        theirs = save_huggingface(tmp_path / kind, kind, use_mean_pooling=mean_pooling)
        inner = getattr(theirs, "videomae", theirs)
        inputs = processor_of(theirs)(central_frames(clip, 8, 4), return_tensors="pt")
        with torch.no_grad():
            expected = inner(**inputs).last_hidden_state.mean(1)[0]
        model = motionmae.load(tmp_path / kind)
        torch.testing.assert_close(torch.from_numpy(model.features(clip)), expected, atol=2e-5, rtol=2e-5)
        assert isinstance(load_model(tmp_path / kind), ours)
        out = tmp_path / f"{kind}-export"
        assert main(["export", str(tmp_path / kind), "--format", "hf", "--out", str(out)]) == 0
        _, info = type(theirs).from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        np.testing.assert_allclose(motionmae.load(out).features(clip), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="the model has no classes"):
        model.predict(clip)


def test_a_released_file_tells_what_it_holds(classifier: tuple[Path, torch.nn.Module], clip: Path, tmp_path: Path):
    folder, theirs = classifier
    loaded = load_model(folder)
    content = as_videomae(loaded.config, loaded.model.state_dict(), finetuned=True)
    arguments = argparse.Namespace(num_frames=8, input_size=32, sampling_rate=2, tubelet_size=2)
    torch.save({"module": content, "args": arguments}, tmp_path / "released.pth")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES.values()) + "\n")
    found = load_model(find_weights(tmp_path / "released.pth", settings=["model.heads=4"]))
    assert isinstance(found, Finetuned)
    assert (found.config.clip.frames, found.config.clip.size, found.config.clip.stride) == (8, 32, 2)
    assert found.class_names == ("class 0", "class 1", "class 2")
    named = motionmae.load(
        tmp_path / "released.pth", settings={"model.heads": 4, "clip.stride": 4}, classes=tmp_path / "names.txt"
    )
    assert named.class_names == tuple(CLASSES.values())
    theirs.fc_norm.eps = 1e-6  # as in VideoMAE's own code, whose file this is
    for module in theirs.videomae.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    expected = their_logits(theirs, clip)
    torch.testing.assert_close(torch.from_numpy(named.predict(clip).logits[0]), expected, atol=2e-5, rtol=2e-5)


def test_the_released_sizes_are_known():
    from motionmae.models.infer_config import config_from_weights

    for name, width, depth, heads in (
        ("vit_s", 384, 12, 6), ("vit_b", 768, 12, 12), ("vit_l", 1024, 24, 16), ("vit_h", 1280, 32, 16),
    ):  # fmt: skip
        state = {"encoder.project.weight": torch.empty(width, 1536, device="meta")}
        state |= {f"encoder.blocks.{n}.norm1.weight": torch.empty(width, device="meta") for n in range(depth)}
        config = config_from_weights(state, {})
        assert (config.model.size, config.model.dimensions.heads, config.clip.cubes) == (name, heads, 1568)
    state = {"encoder.project.weight": torch.empty(1024, 1536), "encoder.pos_embed.table": torch.empty(1568, 1024)}
    assert config_from_weights(state, {}).model.pos_embed == "learnable"


def test_every_command_takes_a_folder_of_transformers(
    classifier: tuple[Path, torch.nn.Module], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    folder, _ = classifier
    save_huggingface(tmp_path / "pretrained", "VideoMAEForPreTraining")
    shards = str(make_shards(tmp_path / "shards", shards=1, samples=6, classes=3))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("bar0\nbar1\nbar2\n")
    short = ["--set", "clip.stride=1"]
    for words in (
        ["test", str(folder), "--shards", shards, "--classes", "names.txt", "--clips", "1", "--crops", "1", *short],
        ["knn", str(folder), "--train", shards, "--test", shards, "--k", "1", *short],
        ["features", str(folder), "--videos", str(clip.parent), "--out", "features.npz"],
        ["reconstruct", "pretrained", "--video", str(clip)],
        ["reconstruct", "pretrained", "--shards", shards, "--out", "of_shards.png", *short],
        ["predict", str(folder), str(clip)],
        ["report", str(folder), "pretrained"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    assert list((tmp_path / "results/videomae-tiny/test").glob("*/report.json"))
    assert (tmp_path / "results/pretrained/reconstruction.png").is_file()
    page = (tmp_path / "results/videomae-tiny/report.html").read_text()
    assert all(text in page for text in ("bowling $5", "test, 1 x 1 views", "2 blocks, width 48, 4 heads"))
    features = np.load("features.npz")["features"]
    np.testing.assert_allclose(features[0], motionmae.load(folder).features(clip), atol=1e-6)
    capsys.readouterr()
    for words, said in (
        (["test", str(folder)], "add --shards FOLDER"),
        (["reconstruct", "pretrained"], "add --video FILE or --shards FOLDER"),
        (["reconstruct", str(folder), "--video", str(clip)], "holds a classifier"),
        (["test", "pretrained", "--shards", shards], "holds no classifier"),
        (["predict", "MCG-NJU/videomae-base", str(clip)], "hf download MCG-NJU/videomae-base --local-dir FOLDER"),
        (["predict", shards, str(clip)], "holds shards"),
        (["predict", str(folder), str(clip), "--step", "3"], "is not a run folder"),
        (["predict", str(folder), str(clip), "--set", "data.shards=/x"], "--set data.shards=/x is not possible"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_hostile_export_names_no_folder_and_builds_no_giant(classifier: tuple[Path, torch.nn.Module], tmp_path: Path):
    assert main(["export", str(classifier[0]), "--out", str(tmp_path / "x")]) == 0
    facts = json.loads((tmp_path / "x/motionmae.json").read_text())
    facts["config"]["data"]["shards"] = "http://127.0.0.1:9/secret"
    facts["config"]["engine"]["environment"] = {"LD_PRELOAD": "/tmp/evil.so"}
    facts["config"]["output_dir"] = "/etc"
    (tmp_path / "x/motionmae.json").write_text(json.dumps(facts))
    config = load_model(tmp_path / "x").config
    assert (config.data.shards, config.output_dir, dict(config.engine.environment)) == ("", "runs", {})
    for key, value in (("width", 65536), ("depth", 9999)):
        facts["config"]["model"][key] = value
        (tmp_path / "x/motionmae.json").write_text(json.dumps(facts))
        with pytest.raises(UserError, match="give weights with their own config"):
            load_model(tmp_path / "x")
        facts["config"]["model"].pop(key)
    facts["config"]["clip"]["size"] = 65536
    (tmp_path / "x/motionmae.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="give weights with their own config"):
        load_model(tmp_path / "x")


def card_code(folder: Path) -> str:
    """The Python code in a model card."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


@pytest.mark.parametrize("kind", ["VideoMAEForVideoClassification", "VideoMAEForPreTraining", "VideoMAEModel"])
def test_the_code_of_a_model_card_runs(
    kind: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    theirs = save_huggingface(tmp_path / "model", kind)
    shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    printed = {}
    for form in ("safetensors", "hf"):
        name = f'{form} "x"'
        assert main(["export", "model", "--format", form, "--license", "cc-by-nc-4.0", "--out", name]) == 0
        capsys.readouterr()
        exec(card_code(tmp_path / name), {})
        printed[form] = capsys.readouterr().out
        card = (tmp_path / name / "README.md").read_text()
        assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
        assert "## Licence" in card
    if kind == "VideoMAEForVideoClassification":
        scores = their_logits(theirs, clip).softmax(0)
        best = int(scores.argmax())
        for text in printed.values():
            assert text.splitlines()[0] == f"{scores[best]:.3f} {CLASSES[best]}"
        assert "1. bowling $5" in card
        assert "Not measured before the export" in card
