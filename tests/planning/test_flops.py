"""Counts by formula against built models, torch's FLOP counter, and the paper."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from motionmae.config import Config, load_config
from motionmae.models.classifier import Classifier
from motionmae.models.motionmae import MotionMAE
from motionmae.planning.flops import count_classifier_parameters, count_parameters, forward_gflops, step_flops
from tests.models.tiny import tiny

VARIANTS = [
    tiny(),
    tiny(target={"kind": "frame"}, mask={"kind": "tube"}),
    tiny(target={"kind": "motion", "motion_source": "flow"}),
    tiny(target={"motion_source": "flow"}, model={"decoder": "shared"}),
    tiny(model={"decoder": "shared", "pos_embed": "learnable", "decoder_depth": 3}),
    tiny(mask={"kind": "global", "ratio": 0.6}, model={"activation_checkpointing": "full"}),
    tiny(mask={"decoder_ratio": 0.5}, model={"activation_checkpointing": "full"}),
    tiny(mask={"kind": "time"}, model={"activation_checkpointing": "every_n", "depth": 3}),
    load_config("vitb_k400"),
    load_config("vitl_ssv2_32f"),
    load_config("videomae_vitb_k400", ["mask.decoder_ratio=0.75"]),
    load_config("vitb_ucf101", ["model.activation_checkpointing=full"]),
]


def on_meta(config: Config, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    clip = config.clip
    shape = (batch, clip.frames, clip.size, clip.size)
    clips = torch.empty(*shape, 3, dtype=torch.uint8, device="meta")
    return clips, torch.empty(batch, dtype=torch.int64, device="meta"), torch.empty(*shape, 2, device="meta")


@pytest.mark.parametrize("config", VARIANTS, ids=range(len(VARIANTS)))
def test_parameters_are_those_of_the_built_model(config: Config):
    with torch.device("meta"):
        model = MotionMAE(config)
    counted = count_parameters(config)
    assert counted.encoder == sum(weight.numel() for weight in model.encoder.parameters())
    assert counted.decoders == sum(weight.numel() for weight in model.decoders.parameters())
    assert counted.total == counted.encoder + counted.decoders


@pytest.mark.parametrize("config", VARIANTS, ids=range(len(VARIANTS)))
def test_step_flops_are_what_torch_counts(config: Config):
    """Runs on the meta device, without arithmetic. The math kernel shows attention's products to the counter."""
    with torch.device("meta"):
        model = MotionMAE(config)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        losses = model(*on_meta(config))
        forward = counter.get_total_flops()
        losses.total.backward()
    counted = step_flops(config)
    assert counted.encoder_forward + counted.decoders_forward == forward
    assert counted.model + counted.recomputed == counter.get_total_flops()


@pytest.mark.parametrize("name", ["vitb_k400", "vitl_k400", "vith_k400", "vitl_ssv2_32f"])
def test_forward_gflops_are_half_of_what_torch_counts(name: str):
    config = load_config(name)
    with torch.device("meta"):
        model = Classifier(config, 400)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        model(on_meta(config)[0])
    assert forward_gflops(config, 400) * 2e9 == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert count_classifier_parameters(config, 400) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [
        ("vitb_k400", 87, 180),
        ("vitl_k400", 305, 598),
        ("vith_k400", 632, 1193),
        ("vitl_ssv2_32f", 305, 1436),  # from VideoMAE: the paper repeats its row of 16 frames
    ],
)
def test_counts_equal_the_papers_within_rounding(name: str, millions: int, gflops: int):
    """Tables 1 and 2. Ours: 86.5, 304.3, 632.1 M; 180.3, 596.8, 1191.0 and 1435.4 GFLOPs."""
    config = load_config(name)
    assert count_classifier_parameters(config, 400) / 1e6 == pytest.approx(millions, rel=0.006)
    assert forward_gflops(config, 400) == pytest.approx(gflops, rel=0.0025)


@pytest.mark.parametrize(("name", "gflops"), [("vitl_k400", 598), ("vith_k400", 1193)])
def test_the_papers_last_gflops_are_a_class_token_and_the_norms(name: str, gflops: int):
    """598 and 1193 are from MAE, which adds a class token and counts 5 operations per normalised value."""
    config = load_config(name)
    width, depth = {"vitl_k400": (1024, 24), "vith_k400": (1280, 32)}[name]
    tokens = config.clip.cubes
    token = depth * (12 * width**2 + 2 * width * ((tokens + 1) ** 2 - tokens**2))
    norms = (2 * depth + 1) * (tokens + 1) * width * 5
    assert forward_gflops(config, 400) + (token + norms) / 1e9 == pytest.approx(gflops, abs=0.6)


def test_a_positions_table_explains_the_papers_parameters():
    """87 and 305 M are from VideoMAE: encoder and position table, no head. 632 M is from MAE."""
    for name, millions in (("vitb_k400", 87), ("vitl_k400", 305)):
        config = load_config(name, ["model.pos_embed=learnable"])
        assert int(count_parameters(config).encoder / 1e6) == millions


def test_flops_of_two_decoders():
    """One clip in one step: 104 GFLOP (S) and 314 (B)."""
    assert step_flops(load_config("vitb_k400", ["model.size=vit_s"])).model / 1e9 == pytest.approx(104, abs=0.5)
    assert step_flops(load_config("vitb_k400")).model / 1e9 == pytest.approx(314.3, abs=0.6)
