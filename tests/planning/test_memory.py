from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.memory import LiveTensors, measure_cases
from motionmae.config import Config, load_config
from motionmae.engine import deepspeed_engine
from motionmae.models import vit
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.planning import memory
from motionmae.planning.memory import largest_micro_batch, predict_memory, saved_bytes
from tests.training.launch import run_ranks

SMALL = ["model.depth=3", "clip.size=36", "optim.global_batch_size=32"]


def _clips(config: Config, number: int) -> torch.Tensor:
    clip = config.clip
    return torch.zeros(number, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)


def _bytes_saved_by_autograd(config: Config, clips: int) -> int:
    model: torch.nn.Module = build_motionmae(config) if config.task == "pretrain" else build_classifier(config, 6)
    lasting = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive = []  # no address is reused while its storage is alive

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in lasting:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=config.engine.precision == "bf16"),
    ):
        model(_clips(config, clips), *([torch.arange(clips)] if config.task == "pretrain" else []))
    return sum(saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "full", "every_n"])
@pytest.mark.parametrize(
    "variant",
    [
        "model.decoder=divided",
        "model.decoder=shared",
        "target.kind=frame",
        "clip.cube_size=9 mask.decoder_ratio=0.5",
        "task=finetune",
    ],
)
def test_saved_bytes_equal_those_of_autograd(precision: str, checkpointing: str, variant: str) -> None:
    changes = [f"engine.precision={precision}", f"model.activation_checkpointing={checkpointing}", *variant.split()]
    config = load_config("demo", [*SMALL, *changes])
    # per clip, as a difference: 16-bit copies of weights do not grow with the batch and are counted elsewhere
    saved = (_bytes_saved_by_autograd(config, 4) - _bytes_saved_by_autograd(config, 2)) / 2
    assert saved_bytes(config).total == pytest.approx(saved, rel=0.01)


def _measure_with_small_messages(config: Config) -> list[dict[str, Any]]:
    """Use small message buffers: normal ones would be most of a small model's memory."""
    deepspeed_engine.BUCKET = memory.BUCKET = 500_000
    return measure_cases(config, range(4), ("none", "full"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, "engine.precision=bf16 engine.micro_batch_size=16"),
        (2, "engine.precision=fp32 engine.micro_batch_size=16"),
        (2, "engine.precision=bf16 engine.micro_batch_size=2"),  # messages decide on the peak
    ],
)
def test_peaks_are_what_deepspeed_reaches(ranks: int, changes: str) -> None:
    """Every stage, measured by the code of benchmarks/memory.py."""
    model = ["model.depth=6", "model.width=192", "optim.global_batch_size=16"]
    config = load_config("demo", [*model, *changes.split()])
    rows, *_ = run_ranks(ranks, _measure_with_small_messages, config)
    for row in rows:
        measured, predicted = row["measured"], row["predicted"]
        case = (row["stage"], row["mode"])
        assert predicted["peak"] == pytest.approx(measured["peak"], rel=0.1), case
        assert predicted["parameters"] == pytest.approx(measured["parameters"], rel=0.05), case
        assert predicted["optimizer"] == pytest.approx(measured["optimizer"], rel=0.05), case


@pytest.mark.long
@pytest.mark.parametrize(("name", "mode", "clips"), [("vitl_k400", "none", 16), ("vith_k400", "full", 64)])
def test_large_models_agree_with_fake_tensors(
    name: str, mode: str, clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors run the real model without memory and arithmetic, which no test machine has for these models.

    Both cases reach their peak at the loss, where DeepSpeed holds no more than torch.
    """
    batch = [
        f"optim.global_batch_size={clips}",
        f"engine.micro_batch_size={clips}",
        f"model.activation_checkpointing={mode}",
    ]
    config = load_config(name, ["engine.zero_stage=0", "engine.precision=bf16", *batch])
    monkeypatch.setattr(vit, "attend", scaled_dot_product_attention)  # as on a GPU
    with torch.device("meta"):
        model = MotionMAE(config)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live:
        model = model.to_empty(device="cpu")
        state = live.now
        pixels, seeds = _clips(config, clips), torch.arange(clips)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixels, seeds).total
        activations = live.now - state - pixels.nbytes
        loss.backward()
    predicted = predict_memory(config, 1)
    assert predicted.activations == pytest.approx(activations, rel=0.1)
    # this step has no moments of AdamW yet, and no next micro-batch on its way to a GPU
    assert predicted.peak - predicted.optimizer == pytest.approx(live.peak + pixels.nbytes, rel=0.1)


def test_messages_have_a_second_buffer_during_the_backward_pass() -> None:
    def buffers(*changes: str) -> int:
        tables = predict_memory(load_config("vitl_k400"), 1).buffers  # one rank sends nothing
        return predict_memory(load_config("vitl_k400", list(changes)), 32).buffers - tables

    one = 4 * 50_000_000
    assert buffers("engine.overlap_comm=false") == one
    assert buffers() == 2 * one
    assert buffers("engine.reduce_dtype=bf16") == 4 * one  # and as many for biases and norms, in fp32
    assert buffers("engine.reduce_dtype=bf16", "engine.precision=fp32") == 2 * one


def test_zero_partitions_state_over_the_ranks() -> None:
    def states(ranks: int) -> list[tuple[int, int, int]]:
        found = (predict_memory(load_config("demo", [f"engine.zero_stage={stage}"]), ranks) for stage in range(4))
        return [(held.parameters, held.gradients, held.optimizer) for held in found]

    two, eight = states(2), states(8)
    assert eight[0] == two[0]
    assert [round(a / b) for a, b in zip(two[1], eight[1], strict=True)] == [1, 4, 4]
    assert [round(a / b) for a, b in zip(two[2], eight[2], strict=True)] == [1, 4, 4]
    assert [round(a / b) for a, b in zip(two[3], eight[3], strict=True)] == [4, 4, 4]
    assert states(1) == [states(1)[0]] * 4  # one rank partitions nothing


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    config = load_config("vitl_k400")
    largest = largest_micro_batch(config, 32, 36e9)
    assert predict_memory(config, 32, largest).peak <= 36e9 < predict_memory(config, 32, largest + 1).peak
    recomputing = config.updated({"model.activation_checkpointing": "full"})
    assert largest_micro_batch(recomputing, 32, 36e9) > 2 * largest
    assert largest_micro_batch(config, 32, 1e9) == 0


def test_earlier_micro_batches_leave_gradients() -> None:
    once, twice = (
        predict_memory(load_config("vitl_k400", [f"optim.global_batch_size={b}"]), 32).peak for b in (512, 1024)
    )
    assert once < twice <= once + 4 * 332e6
