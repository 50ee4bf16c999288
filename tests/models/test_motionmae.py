"""The whole model: its parts, the inputs of its loss, and the effect of every config key."""

from typing import Any

import pytest
import torch

from motionmae.config import ClipConfig, Config, MaskConfig, ModelConfig, TargetConfig
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import MotionMAE, build_motionmae, no_decay
from motionmae.models.targets import loss_of, make_targets
from tests.models.tiny import moving_clips, noise_clips, tiny

SEEDS = torch.tensor([11, -12, 13, 14])


def with_flow(config: Config) -> torch.Tensor:
    clip = config.clip
    return torch.randn(4, clip.frames, clip.size, clip.size, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decoder", ["divided", "shared"])
@pytest.mark.parametrize("kind", ["frame", "motion", "both"])
@pytest.mark.parametrize("pos_embed", ["sinusoidal", "learnable"])
def test_gradient_reaches_every_parameter(kind: str, decoder: str, pos_embed: str):
    config = tiny(target={"kind": kind}, model={"decoder": decoder, "pos_embed": pos_embed})
    model = build_motionmae(config)
    model(moving_clips(config), SEEDS).total.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("kind", "decoder", "names"),
    [
        ("frame", "divided", {"space": ["space"]}),
        ("motion", "divided", {"time": ["time"]}),
        ("both", "divided", {"space": ["space"], "time": ["time"]}),
        ("both", "shared", {"shared": ["space", "time"]}),
        ("motion", "shared", {"shared": ["time"]}),
    ],
)
def test_only_the_heads_that_are_needed_exist(kind: str, decoder: str, names: dict[str, list[str]]):
    model = build_motionmae(tiny(target={"kind": kind}, model={"decoder": decoder}))
    assert {name: list(decoder.heads) for name, decoder in model.decoders.items()} == names


@pytest.mark.parametrize("kind", ["frame", "motion", "both"])
def test_total_is_the_weighted_sum_and_an_absent_head_gives_zero(kind: str):
    config = tiny(target={"kind": kind, "frame_weight": 0.5, "motion_weight": 3.0})
    total, space, time = build_motionmae(config)(moving_clips(config), SEEDS)
    assert total.item() == pytest.approx(0.5 * space.item() + 3 * time.item())
    assert (space.item() > 0) == (kind != "motion")
    assert (time.item() > 0) == (kind != "frame")
    assert total.shape == space.shape == time.shape == ()
    assert total.dtype == space.dtype == time.dtype == torch.float32


def test_loss_is_that_of_the_predictions_on_masked_cubes():
    config = tiny()
    model, clips = build_motionmae(config), noise_clips(config)
    mask, patches = model.draw_masks(SEEDS), cut_patches(clips, config.clip.cube_size)
    predictions = model.predict(patches, *mask)
    targets = make_targets(config, patches, mask.masked)
    losses = model(clips, SEEDS)
    assert losses.space == loss_of(predictions["space"], targets["space"].values, "mse")
    assert losses.time == loss_of(predictions["time"], targets["time"].values, "mse")


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_decoders_that_skip_cubes_predict_running_cells_and_count_the_masked_ones(kind: str):
    config = tiny(mask={"kind": kind, "decoder_ratio": 0.5})
    model, clips = build_motionmae(config), noise_clips(config)
    mask, patches = model.draw_masks(SEEDS), cut_patches(clips, config.clip.cube_size)
    query, counted = model.draw_queries(SEEDS, mask)
    assert query.shape == (4, config.clip.cubes // 2)
    assert counted is not None
    predictions, targets = model.predict(patches, mask.visible, query), make_targets(config, patches, query)
    losses = model(clips, SEEDS)
    for name, loss in (("space", losses.space), ("time", losses.time)):
        of_clips = []
        for clip in range(4):
            masked = [cube in mask.masked[clip].tolist() for cube in query[clip].tolist()]
            assert counted[clip].tolist() == masked
            assert 0 < sum(masked) < len(masked)
            of_clips.append((predictions[name][clip] - targets[name].values[clip])[masked].square().mean().item())
        assert loss.item() == pytest.approx(sum(of_clips) / 4, rel=1e-5)
    losses.total.backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())
    assert model.reconstruct(clips, SEEDS).mask.sum() == mask.masked.numel()  # reconstructions show all masked cubes


def test_masked_pixels_never_reach_the_encoder():
    config = tiny()
    model, clips = build_motionmae(config), noise_clips(config)
    mask, patches = model.draw_masks(SEEDS), cut_patches(clips, config.clip.cube_size)
    expected = model.predict(patches, *mask)["space"]
    time, space = config.clip.temporal_patches, config.clip.spatial_patches
    masked = torch.zeros(4, time * space, dtype=torch.bool).scatter(1, mask.masked, True).view(4, time, 1, space)
    spoiled = patches.view(4, time, 2, space, -1).clone()
    spoiled[masked.expand(-1, -1, 2, -1)] = 0
    assert torch.equal(model.predict(spoiled.view_as(patches), *mask)["space"], expected)
    assert not torch.equal(model.predict(255 - patches, *mask)["space"], expected)


def test_a_clips_loss_depends_on_its_own_seed_and_not_on_its_neighbours():
    config = tiny()
    model, clips = build_motionmae(config), moving_clips(config)
    together = model(clips, SEEDS).total.item()
    alone = [model(clips[i : i + 1], SEEDS[i : i + 1]).total.item() for i in range(4)]
    assert together == pytest.approx(sum(alone) / 4, rel=1e-5)
    assert model(clips, SEEDS + 1).total.item() != together
    torch.manual_seed(99)
    assert model(clips, SEEDS).total.item() == together


def test_initial_weights_follow_from_the_seed_alone_and_leave_the_generator_alone():
    config = tiny()
    torch.manual_seed(1)
    first = build_motionmae(config).state_dict()
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == after
    second = build_motionmae(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_motionmae(config.updated({"seed": 1})).state_dict()
    assert not torch.equal(first["encoder.project.weight"], other["encoder.project.weight"])


def test_heads_do_not_change_the_encoders_initial_weights():
    both, frame = (build_motionmae(tiny(target={"kind": kind})).state_dict() for kind in ("both", "frame"))
    assert all(torch.equal(both[name], value) for name, value in frame.items())


def test_the_two_decoders_are_independent():
    model = build_motionmae(tiny())
    space, time = (dict(model.decoders[name].named_parameters()) for name in ("space", "time"))
    assert not {id(weight) for weight in space.values()} & {id(weight) for weight in time.values()}
    assert not torch.equal(space["embed.weight"], time["embed.weight"])


@pytest.mark.parametrize("pos_embed", ["sinusoidal", "learnable"])
def test_no_decay_names_vectors_tables_and_mask_tokens(pos_embed: str):
    model = build_motionmae(tiny(model={"pos_embed": pos_embed}))
    spared = no_decay(model)
    decayed = set(dict(model.named_parameters())) - spared
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert {"decoders.space.mask_token", "encoder.norm.weight", "encoder.blocks.0.attn.q_bias"} <= spared
    tables = {"encoder.pos_embed.table", "decoders.space.pos_embed.table", "decoders.time.pos_embed.table"}
    assert tables <= spared if pos_embed == "learnable" else not tables & spared


def test_the_state_dict_holds_parameters_only():
    model = build_motionmae(tiny())
    assert set(model.state_dict()) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("frames", [16, 32])
def test_sixteen_and_thirty_two_frames(frames: int):
    config = tiny(clip={"frames": frames}, mask={"kind": "tube"})
    model = build_motionmae(config)
    losses = model(moving_clips(config), SEEDS)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    mask = model.draw_masks(SEEDS)
    assert mask.visible.shape == (4, frames // 2 * 4)
    assert mask.masked.shape == (4, frames // 2 * 12)


def test_bf16_autocast_gives_float32_losses_near_those_of_fp32():
    config = tiny()
    model, clips = build_motionmae(config), moving_clips(config)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(clips, SEEDS)
    full = model(clips, SEEDS)
    assert half.total.dtype == torch.float32
    assert half.total.item() == pytest.approx(full.total.item(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_the_whole_model_is_one_graph_for_the_compiler(bf16: bool):
    """Without graph breaks ``engine.compile`` gets masks, targets and losses in one graph."""
    config = tiny(model={"activation_checkpointing": "full"})
    model, clips = build_motionmae(config), moving_clips(config)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        compiled(clips, SEEDS).total.backward()
        found = [weight.grad for weight in model.parameters()]
        model.zero_grad()
        model(clips, SEEDS).total.backward()
    for ours, weight in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, weight.grad, rtol=0.02 if bf16 else 1e-4, atol=1e-4)


def test_flow_is_learnt_where_it_is_the_target():
    config = tiny(target={"motion_source": "flow"})
    model, flow = build_motionmae(config), with_flow(config)
    assert model.decoders["time"].heads["time"].out_features == config.clip.cube_pixels // 3 * 2
    losses = model(moving_clips(config), SEEDS, flow)
    losses.time.backward()
    assert model(moving_clips(config), SEEDS, flow.roll(1, 0)).time != losses.time


def turned(section: str, field: str, value: Any) -> tuple[Any, ...]:
    """Return the effects that a changed field can have: parameter shapes, losses, number of block runs.

    A field that needs another field to act gets that one too.
    """
    beside: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
        ("model", "checkpoint_every"): {"model": {"activation_checkpointing": "every_n", "depth": 4}},
        ("model", "decoder_init"): {"model": {"pos_embed": "separate"}},
        ("target", "frame_std"): {"target": {"normalize": False}},
        ("target", "motion_std"): {"target": {"normalize": False}},
    }
    sections = {name: dict(fields) for name, fields in beside.get((section, field), {}).items()}
    if value is not None:
        sections.setdefault(section, {})[field] = value
    config = tiny(**sections)
    model = build_motionmae(config)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for name, part in model.named_modules():
        if name.endswith(".attn"):
            part.register_forward_hook(count)
    losses = model(moving_clips(config), SEEDS, with_flow(config))
    losses.total.backward()
    shapes = tuple(tuple(weight.shape) for weight in model.parameters())
    return shapes, tuple(loss.item() for loss in losses), runs


KNOBS: dict[tuple[str, str], Any] = {
    ("clip", "frames"): 12,
    ("clip", "size"): 48,
    ("clip", "cube_frames"): 4,
    ("clip", "cube_size"): 16,
    ("model", "size"): "vit_b",
    ("model", "width"): 96,
    ("model", "depth"): 3,
    ("model", "heads"): 4,
    ("model", "decoder"): "shared",
    ("model", "decoder_width"): 48,
    ("model", "decoder_depth"): 1,
    ("model", "decoder_heads"): 4,
    ("model", "decoder_init"): "local",
    ("model", "pos_embed"): "learnable",
    ("model", "patch_embed_init"): "pytorch",
    ("model", "activation_checkpointing"): "full",
    ("model", "checkpoint_every"): 4,
    ("mask", "kind"): "tube",
    ("mask", "ratio"): 0.5,
    ("mask", "decoder_ratio"): 0.5,
    ("target", "kind"): "frame",
    ("target", "frame_weight"): 2.0,
    ("target", "motion_weight"): 2.0,
    ("target", "motion_source"): "flow",
    ("target", "motion_sign"): "signed",
    ("target", "motion_granularity"): 2,
    ("target", "loss"): "l1",
    ("target", "normalize"): False,
    ("target", "motion_norm"): "clip",
    ("target", "frame_eps"): 0.1,
    ("target", "motion_eps"): 0.1,
    ("target", "frame_std"): 0.2,
    ("target", "motion_std"): 0.07,
}


@pytest.mark.parametrize(("section", "field"), KNOBS)
def test_every_knob_changes_something(section: str, field: str):
    if (section, field) == (
        "model",
        "size",
    ):  # the tiny model overrides all numbers of its size: compare depths instead
        shallow, deep = (MotionMAE(tiny(model={"size": size, "depth": 0})) for size in ("vit_b", "vit_l"))
        assert len(shallow.encoder.blocks) == 12
        assert len(deep.encoder.blocks) == 24
        return
    assert turned(section, field, KNOBS[section, field]) != turned(section, field, None)


def test_the_knobs_are_all_there_are():
    sections = {"clip": ClipConfig, "model": ModelConfig, "mask": MaskConfig, "target": TargetConfig}
    fields = {(name, field) for name, section in sections.items() for field in section.model_fields}
    assert fields - set(KNOBS) == {("clip", "stride")}  # used by the loader


@pytest.mark.parametrize("kind", ["random", "tube", "time", "global"])
@pytest.mark.parametrize(("loss", "decoder_ratio"), [("mse", 0), ("l1", 0), ("smooth_l1", 0), ("mse", 0.5)])
def test_every_mask_and_loss_can_be_trained(kind: str, loss: str, decoder_ratio: float):
    config = tiny(mask={"kind": kind, "decoder_ratio": decoder_ratio}, target={"loss": loss})
    losses = train(config, steps=8)
    assert losses[-1][0] < 0.97 * losses[0][0]


@pytest.mark.parametrize("decoder", ["divided", "shared"])
def test_both_heads_learn_what_predicting_the_mean_cannot_reach(decoder: str):
    """Targets have mean zero. Predicting zero costs their mean square: 0.99 (frames) and 0.75 (motion) here."""
    config = tiny(model={"decoder": decoder})
    model, clips = build_motionmae(config), moving_clips(config, 2)
    patches, mask = cut_patches(clips, config.clip.cube_size), model.draw_masks(SEEDS[:2])
    targets = make_targets(config, patches, mask.masked)
    losses = train(config, steps=120)[-1]
    assert losses[1] < 0.5 * targets["space"].values.square().mean()
    assert losses[2] < 0.7 * targets["time"].values.square().mean()


def train(config: Config, steps: int) -> list[list[float]]:
    """Train on two clips with the same mask in every step; return the losses of each step."""
    model, clips = build_motionmae(config), moving_clips(config, 2)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 20)
        found = model(clips, SEEDS[:2])
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append([loss.item() for loss in found])
    return losses
