"""Fine-tuning with the trainer, engine, and checkpoints of pre-training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.data.mixup import Mixup

from motionmae.checkpointing.load_weights import load_state
from motionmae.config import Config, FinetuneConfig
from motionmae.data.loader import Batch
from motionmae.data.open_shards import load_manifest
from motionmae.errors import UserError
from motionmae.evaluation.load_model import load_finetuned
from motionmae.files import write_json
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import drop_repeated, read_rows
from motionmae.training import finetune
from motionmae.training.finetune import ClipMixup, Finetuning
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks, wait_until
from tests.training.other_run import hide_newest, read_while_it_saves
from tests.training.run_workers import run_all
from tests.training.shards import STEPS, make_shards, tiny_run

PROBE = {"mode": "linear", "mixup": 0.0, "cutmix": 0.0, "layer_decay": 1.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", classes=3)


def run_of(shards: Path, runs: Path, **sections: dict[str, Any]) -> Config:
    """A config with every option of Table 6b."""
    everything: dict[str, dict[str, Any]] = {
        "data": {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "repeated_sampling": 2},
        "optim": {"ema_decay": 0.9},
        "finetune": {"drop_path": 0.2},
    }
    merged = {key: everything.get(key, {}) | sections.get(key, {}) for key in (*everything, *sections)}
    return tiny_run(shards, runs, **merged).updated({"task": "finetune"})


def save_encoder(path: Path, config: Config) -> Path:
    torch.save({"model": build_motionmae(config).state_dict()}, path)
    return path


def outcome(config: Config) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a finished run; the weights' moving average if it has one."""
    folder = RunFolder(config.run_folder)
    newest = CheckpointStore(folder.checkpoints).complete()[-1].folder
    return [row["loss"] for row in drop_repeated(read_rows(folder.metrics))], load_state(newest).state


@pytest.mark.long
@pytest.mark.parametrize(("world", "zero"), [(1, 0), (2, 2)])
def test_killed_and_started_again_equals_undisturbed_bit_for_bit(world: int, zero: int, shards: Path, tmp_path: Path):
    whole, killed = (run_of(shards, tmp_path / name, engine={"zero_stage": zero}) for name in ("whole", "killed"))
    folder = RunFolder(killed.run_folder)
    ranks = Ranks(world, run_training, killed)
    wait_until(lambda: len(drop_repeated(read_rows(folder.metrics))) >= 5, "step 5")
    ranks.kill()
    assert run_ranks(world, run_all, [killed, whole])[0] == ["FINISHED"] * 2
    (losses, weights), (expected, reference) = outcome(killed), outcome(whole)
    assert len(losses) == STEPS
    assert losses == expected
    assert weights.keys() == reference.keys()
    assert all(torch.equal(value, reference[name]) for name, value in weights.items())


def test_an_average_of_the_weights_is_kept_and_a_run_without_one_differs(shards: Path, tmp_path: Path):
    quiet = {
        "data": {"repeated_sampling": 1, "rand_augment": "", "random_erasing": 0},
        "finetune": {"mixup": 0.0, "cutmix": 0.0},
    }
    plain = run_of(shards, tmp_path / "plain", optim={"ema_decay": 0.0}, **quiet)
    averaged = run_of(shards, tmp_path / "averaged", **quiet)
    assert run_ranks(1, run_all, [plain, averaged])[0] == ["FINISHED"] * 2
    (losses, last), (same, average) = outcome(plain), outcome(averaged)
    assert losses == same  # the average does not affect training
    begin = build_classifier(plain, 3).state_dict()["head.weight"]
    assert 0 < (average["head.weight"] - begin).norm() < (last["head.weight"] - begin).norm()  # it lags behind


def test_a_probe_trains_its_head_alone_and_keeps_its_initial_encoder(shards: Path, tmp_path: Path):
    init = save_encoder(tmp_path / "encoder.pth", run_of(shards, tmp_path))
    config = run_of(shards, tmp_path, finetune={**PROBE, "init": str(init)}, checkpoint={"every_steps": 3})
    linear = config.updated({"optim.ema_decay": 0.0})
    attentive = linear.updated({"name": "attentive", "finetune.mode": "attentive"})
    first, second = (RunFolder(tmp_path / run.name) for run in (linear, attentive))
    first.path.mkdir()
    write_json(first.lease, {"number": 0, "id": "earlier", "host": "elsewhere", "pid": 1, "time": 0.0})
    others = build_motionmae(linear.updated({"seed": 7})).state_dict()
    save_file(others, first.encoder)  # from an attempt that saved no checkpoint
    (first.path / "stop").touch()
    assert run_ranks(2, run_all, [linear, attentive])[0] == ["STOPPED", "FINISHED"]
    init.unlink()  # deleted by its pre-training
    assert run_ranks(1, run_all, [linear])[0] == ["FINISHED"]
    _, weights = outcome(linear)
    assert set(weights) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    _, weights = outcome(attentive)
    assert "pool.latent" in weights
    assert not any(name.startswith("encoder.") for name in weights)

    began_with = build_motionmae(linear).encoder.state_dict()
    state = CheckpointStore(first.checkpoints).complete()[-1].state()
    resumed = Finetuning(linear).build_model(load_manifest(shards), state["task"])
    for model in (load_finetuned(first.path).model, load_finetuned(second.path).model, resumed):
        assert all(torch.equal(value, began_with[name]) for name, value in model.encoder.state_dict().items())
    save_file(others, second.encoder)
    with pytest.raises(UserError, match="holds a different encoder from the one that the head in"):
        load_finetuned(second.path)


def test_the_encoder_starts_from_the_given_weights_and_a_wrong_size_is_named(shards: Path, tmp_path: Path):
    config = run_of(shards, tmp_path)
    init = save_encoder(tmp_path / "encoder.pth", config.updated({"seed": 5}))
    config = config.updated({"finetune": FinetuneConfig(init=str(init))})
    model = Finetuning(config).build_model(load_manifest(shards), None)
    source = build_motionmae(config.updated({"seed": 5}))
    for name, weight in model.encoder.named_parameters():
        assert torch.equal(weight, source.get_parameter(f"encoder.{name}")), name

    wider = config.updated({"model.width": 48})
    with pytest.raises(UserError, match=r"project\.weight has shape \(32, 384\), the model expects \(48, 384\)"):
        Finetuning(wider).build_model(load_manifest(shards), None)
    with pytest.raises(UserError, match="no weights at"):
        Finetuning(config.updated({"finetune": FinetuneConfig(init="nowhere.pth")})).build_model(
            load_manifest(shards), None
        )


def test_ranks_begin_with_the_same_checkpoint_of_a_run_that_saves_meanwhile(shards: Path, tmp_path: Path):
    """DeepSpeed broadcasts rank 0's weights, but only after the moving average was initialised."""
    first = tiny_run(shards, tmp_path, optim={"epochs": 2})
    second = run_of(shards, tmp_path, finetune={"init": str(tmp_path / "tiny")}).updated({"name": "second"})
    assert run_ranks(1, run_all, [first])[0] == ["FINISHED"]
    before, newest = hide_newest(tmp_path / "tiny")
    found = run_ranks(2, read_while_it_saves, tmp_path / "tiny", newest, run_all, [second])
    assert found == [[before], [before]]
    assert (tmp_path / "tiny" / "checkpoints" / newest).is_dir()


def test_layers_learn_by_layer_wise_decay(shards: Path, tmp_path: Path):
    config = run_of(shards, tmp_path, finetune={"layer_decay": 0.75}, model={"pos_embed": "learnable"})
    task = Finetuning(config)
    model = task.build_model(load_manifest(shards), None)
    found = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in task.parameter_groups(model)
        for p in group["params"]
    }
    depth = config.model.depth
    for name, parameter in model.named_parameters():
        layer = depth + 1
        if name.startswith(("encoder.project", "encoder.pos_embed")):
            layer = 0
        elif name.startswith("encoder.blocks."):
            layer = int(name.split(".")[2]) + 1
        decays = parameter.ndim > 1 and name != "encoder.pos_embed.table"
        assert found[id(parameter)] == (pytest.approx(0.75 ** (depth + 1 - layer)), 0.05 if decays else 0.0), name


def test_unlabelled_or_single_class_shards_are_refused(tmp_path: Path):
    single = run_of(make_shards(tmp_path / "single"), tmp_path / "runs")
    [[sentence]] = run_ranks(1, run_all, [single])
    assert "has 1 classes, but a classifier needs two" in sentence


def test_mixing_clips_equals_timm_on_frames_as_channels():
    clips = torch.rand(4, 2, 12, 16, 3)
    labels = torch.tensor([0, 1, 2, 1])
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 3}
    kinds = set()
    for seed in range(20):
        np.random.seed(seed)
        mixed, targets = ClipMixup(**options)(clips.clone(), labels)
        np.random.seed(seed)
        pictures = clips.permute(0, 1, 4, 2, 3).reshape(4, 6, 12, 16).clone()
        expected, same = Mixup(**options)(pictures, labels)
        assert torch.equal(mixed.permute(0, 1, 4, 2, 3).reshape(4, 6, 12, 16), expected)
        assert torch.equal(targets, same)
        kinds.add(bool((mixed == clips).any()))
    assert kinds == {True, False}  # both CutMix, which keeps pixel values, and mixup occurred


class LinearEngine:
    """An engine whose logits are those of a table, whatever the clips."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.clips = logits, torch.empty(0)

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        self.clips = clips
        return self.logits


def test_the_loss_of_fine_tuning_is_smoothed_cross_entropy(shards: Path, tmp_path: Path):
    """Worked by hand: (1 - s) times the loss of the class, plus s times the mean loss of all classes."""
    settings = {**PROBE, "mode": "full", "label_smoothing": 0.3}
    task = Finetuning(run_of(shards, tmp_path, finetune=settings))
    assert not task.build_model(load_manifest(shards), None).frozen
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], dtype=torch.bfloat16)
    labels = torch.tensor([0, 2])
    batch = Batch(torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8), labels, labels, labels, None)
    engine = LinearEngine(logits)
    (loss,) = task.forward(engine, batch)  # type: ignore[arg-type]
    negative = -logits.double().log_softmax(1)
    expected = (0.7 * negative[[0, 1], labels] + 0.3 * negative.mean(1)).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert (engine.clips.dtype, loss.dtype) == (torch.uint8, torch.float32)


def test_mixed_clips_have_soft_labels(shards: Path, tmp_path: Path):
    task = Finetuning(run_of(shards, tmp_path, finetune={"mixup": 0.8, "cutmix": 0.0, "label_smoothing": 0.1}))
    task.build_model(load_manifest(shards), None)
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2])
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(clips, labels, labels, labels, None)
    engine = LinearEngine(logits)
    np.random.seed(3)
    (loss,) = task.forward(engine, batch)  # type: ignore[arg-type]
    np.random.seed(3)
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 0.0, "label_smoothing": 0.1, "num_classes": 3}
    mixed, targets = ClipMixup(**options)(clips.float(), labels)
    assert torch.equal(engine.clips, mixed)
    assert float(loss) == pytest.approx(float(-(targets * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)
    assert (clips == batch.clips).all()


@pytest.mark.parametrize(
    ("settings", "saved", "resolved"),
    [
        ({"init": "somewhere"}, None, True),
        ({"init": "somewhere"}, {}, False),  # a resume
        ({"init": "scratch"}, None, False),
        ({**PROBE, "init": "somewhere"}, None, False),
    ],
)
def test_a_checkpoint_is_chosen_once_for_a_new_run_with_an_encoder_that_learns(
    settings: dict[str, Any], saved: dict[str, Any] | None, resolved: bool, shards: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    asked: list[str] = []
    monkeypatch.setattr(finetune, "run_on_rank_zero", lambda rank, action: action())
    monkeypatch.setattr(finetune, "resolve_checkpoint", lambda init: asked.append(init) or "chosen")
    Finetuning(run_of(shards, tmp_path, finetune=settings)).choose_weights(None, saved)  # type: ignore[arg-type]
    assert asked == (["somewhere"] if resolved else [])
