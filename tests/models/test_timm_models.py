"""MotionMAE's models in timm's registry, by timm's own tools and conventions."""

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import motionmae.models.timm_models  # noqa: F401 - registers the models
from motionmae.config import Config
from motionmae.models.classifier import Classifier

NAME = "motionmae_vit_tiny_patch16_224"


def small(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, **{"num_classes": 3, "img_size": 32, "num_frames": 4, **options}).eval()


def clips_of(frames: int = 4, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, frames, side, side, 3), dtype=torch.uint8, generator=generator)


def test_size_and_frames_are_followed():
    assert small()(clips_of()).shape == (2, 3)
    assert small(img_size=(48, 48), num_frames=6)(clips_of(6, 48)).shape == (2, 3)
    for wrong in (clips_of(8), clips_of(4, 48), clips_of()[0], clips_of().permute(0, 1, 4, 2, 3)):
        with pytest.raises(ValueError, match=r"takes \(batch, 4, 32, 32, 3\) or \(batch, 3, 4, 32, 32\)"):
            small()(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"in_chans": 1}, "in_chans=1 is not possible"),
        ({"features_only": True}, "features_only=True is not possible"),
        ({"global_pool": "token"}, "global_pool='token' is not possible"),
        ({"img_size": (32, 48)}, r"img_size=\(32, 48\) is not possible"),
        ({"img_size": 30}, "does not fit: clip.size=30"),
        ({"num_frames": 3}, "does not fit: clip.frames=3"),
        ({"drop_path_rate": 1.5}, "finetune.drop_path=1.5"),
        ({"drop_rate": 1.5}, "dropout probability"),
        ({"pretrained": True}, "publishes no weights"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_by_name(options: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        small(**options)


def test_an_unknown_argument_is_an_error_as_in_timm():
    with pytest.raises(TypeError, match="no_such_option"):
        small(no_such_option=1)
    with pytest.raises(TypeError):
        timm.create_model("vit_tiny_patch16_224", no_such_option=1)


def test_normalised_floats_and_the_layout_of_torch_give_the_logits_of_grey_levels():
    model, clips = small(), clips_of()
    transform = resolve_model_data_config(model)
    assert transform["input_size"] == (3, 32, 32)
    assert (transform["mean"], transform["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    normalised = (clips / 255 - torch.tensor(transform["mean"])) / torch.tensor(transform["std"])
    with torch.no_grad():
        expected = model(clips)
        torch.testing.assert_close(model(normalised), expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(model(normalised.permute(0, 4, 1, 2, 3)), expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(model(clips.permute(0, 4, 1, 2, 3)), expected)


def test_the_default_config_names_the_layers():
    model = small()
    assert model.default_cfg == model.pretrained_cfg
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(model.default_cfg["first_conv"]), torch.nn.Linear)
    assert model.default_cfg["license"] == "apache-2.0"
    assert timm.models.get_pretrained_cfg(NAME).num_classes == 400


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads"),
    [
        ("tiny", 192, 12, 3),
        ("small", 384, 12, 6),
        ("base", 768, 12, 12),
        ("large", 1024, 24, 16),
        ("huge", 1280, 32, 16),
    ],
)
def test_the_registered_names_are_the_sizes_of_vit(name: str, width: int, depth: int, heads: int):
    with torch.device("meta"):
        model = timm.create_model(f"motionmae_vit_{name}_patch16_224", drop_path_rate=0.2)
    blocks = model.encoder.blocks
    assert (model.num_features, len(blocks), blocks[0].attn.num_heads) == (width, depth, heads)
    assert (blocks[-1].drop_path1.drop_prob, model.head.out_features) == (pytest.approx(0.2), 400)
    known = timm.models.get_pretrained_cfg(f"motionmae_vit_{name}_patch16_224")
    assert (known.input_size, known.fixed_input_size, known.crop_pct) == ((3, 224, 224), True, 1.0)


def test_a_new_head_begins_as_small_as_the_first():
    model = small()
    model.reset_classifier(2000)
    assert model.head.weight.std().item() == pytest.approx(0.02e-3, rel=0.05)
    assert (model.head.bias == 0).all()
    assert model.no_weight_decay() == {"encoder.pos_embed.table"}
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.encoder.blocks] == [0.0] * 12


def test_dropout_before_the_head():
    model = small(drop_rate=0.5)
    with torch.no_grad():
        assert torch.equal(model(clips_of()), small()(clips_of()))
        torch.manual_seed(3)
        assert not torch.equal(model.train()(clips_of()), small()(clips_of()))


def test_the_methods_of_timm_models():
    model, clips = small(), clips_of()
    with torch.no_grad():
        tokens = model.forward_features(clips)
        assert tokens.shape == (2, 2 * 4, model.num_features)
        assert torch.equal(model.forward_head(tokens), model(clips))
        pooled = model.forward_head(tokens, pre_logits=True)
        assert torch.equal(small(num_classes=0)(clips), pooled)
    model.reset_classifier(7)
    assert model(clips).shape == (2, 7)
    model.reset_classifier(0)
    assert torch.equal(model(clips), pooled)
    gradients = []
    for recompute in (False, True):
        again = small().train()
        again.set_grad_checkpointing(recompute)
        again(clips).square().sum().backward()
        gradients.append(again.encoder.project.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_weights_are_those_of_a_fine_tuning():
    config = Config().updated({"model.size": "vit_ti", "clip.size": 32, "clip.frames": 4, "finetune.drop_path": 0.0})
    ours, model = Classifier(config, 3).eval(), small()
    model.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(model(clips_of()), ours(clips_of()))
