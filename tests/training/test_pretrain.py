"""The task of pre-training in this process: its weights, its parameter groups and its losses. Runs: test_whole_runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.config import Config
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.training import pretrain
from motionmae.training.pretrain import Pretraining
from tests.training.shards import tiny_run

NOTHING: Any = None


def config_of(tmp_path: Path, **changes: Any) -> Config:
    return tiny_run(tmp_path, tmp_path, optim={"weight_decay": 0.07}).updated(changes)


def test_weights_of_layers_decay_and_nothing_else(tmp_path: Path):
    """Biases, norms, mask tokens and position tables do not. Weights that are not trained are in no group."""
    config = config_of(tmp_path, **{"model.pos_embed": "learnable"})
    model = build_motionmae(config)
    frozen = model.get_parameter("encoder.blocks.0.mlp.fc1.weight").requires_grad_(False)
    decayed, exempt = Pretraining(config).parameter_groups(model)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.07, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    with_decay, without = ({names[id(p)] for p in group["params"]} for group in (decayed, exempt))
    assert with_decay | without == set(names.values()) - {names[id(frozen)]}
    assert not with_decay & without
    assert "encoder.project.weight" in with_decay
    assert "encoder.blocks.1.attn.qkv.weight" in with_decay
    assert "encoder.pos_embed.table" in without
    for name in with_decay:
        assert name.endswith(".weight"), name
        assert "norm" not in name, name
    assert {
        name for name in names.values() if name.endswith("bias") or "norm" in name or "mask_token" in name
    } <= without


@pytest.mark.parametrize(
    ("init", "saved", "resolved", "built_with"),
    [
        ("somewhere", None, True, "chosen"),
        ("somewhere", {"initial_weights": {"path": "old"}}, False, None),  # a resume
        ("somewhere", {}, False, None),
        ("scratch", None, False, None),
    ],
)
def test_weights_are_chosen_once_and_a_resume_keeps_their_record(
    init: str, saved: dict[str, Any] | None, resolved: bool, built_with: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    class Record:
        def as_row(self) -> dict[str, str]:
            return {"path": "chosen"}

    asked, loaded = list[str](), list[Any]()
    monkeypatch.setattr(pretrain, "run_on_rank_zero", lambda rank, action: action())
    monkeypatch.setattr(pretrain, "resolve_checkpoint", lambda source: asked.append(source) or Path("chosen"))
    monkeypatch.setattr(pretrain, "load_initial_weights", lambda *words: loaded.append(words) or Record())
    config = config_of(tmp_path, **{"pretrain.init": init})
    task = Pretraining(config)
    task.choose_weights(NOTHING, saved)
    model = task.build_model(NOTHING, saved)
    assert isinstance(model, MotionMAE)
    assert asked == (["somewhere"] if resolved else [])
    assert loaded == ([(model, built_with, config)] if built_with else [])
    assert (task.initial_weights is not None) is (built_with is not None)
    assert task.state() == ({"initial_weights": {"path": "chosen"}} if built_with else saved or {})
    fresh = build_motionmae(config)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


def test_losses_are_those_of_the_model_for_clips_seeds_and_flow(tmp_path: Path):
    task = Pretraining(config_of(tmp_path))
    assert task.losses == ("loss", "loss_space", "loss_time")
    assert (task.needs_flow, task.needs_labels) == (False, False)
    assert Pretraining(config_of(tmp_path, **{"target.motion_source": "flow"})).needs_flow
    batch: Any = type("Batch", (), {"clips": 1, "seeds": 2, "flow": 3, "labels": 4, "samples": 5})
    assert task.forward(lambda *inputs: inputs, batch) == (1, 2, 3)  # type: ignore[arg-type]
